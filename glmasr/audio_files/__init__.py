"""Any recording, a file, bytes, an address or an array -> its samples, within limits that hostile files can't break."""
