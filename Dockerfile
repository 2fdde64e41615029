# The server in a container:  docker build -t glmasr .      docs/CONTAINER.md
FROM python:3.11-slim-bookworm AS build
# The build of PyTorch: cpu, or one with CUDA, such as cu130, which asks nothing of the machine but its driver.
ARG TORCH=cpu
WORKDIR /src
RUN python -m venv --without-pip /venv
COPY constraints.txt ./
# By itself, for it is large and stays the same when the package changes. Both indexes have this version; pip takes that with +cpu or +cu130.
RUN pip --python /venv install -c constraints.txt --extra-index-url https://download.pytorch.org/whl/${TORCH} torch
COPY . .
RUN pip --python /venv install -c constraints.txt '.[web,hub]'

FROM python:3.11-slim-bookworm
# Programs of Debian to have beside it: with PACKAGES=ffmpeg it reads M4A, MP4 and WEBM too.
ARG PACKAGES=
RUN if [ "$PACKAGES" ]; then apt-get update && apt-get install -y --no-install-recommends $PACKAGES && rm -rf /var/lib/apt/lists/*; fi
# TRAP: a new volume takes over the owner of the folder that it covers; one that is not there would be root's.
RUN useradd --create-home --uid 1000 glmasr && install -d -o glmasr -g glmasr /cache
COPY --from=build /venv /venv
WORKDIR /app
COPY app.py ./
ENV PATH=/venv/bin:$PATH HF_HOME=/cache MODELSCOPE_CACHE=/cache/modelscope
USER glmasr
VOLUME /cache
EXPOSE 7860
# The first start fetches 4.5 GB. TRAP: urllib would ask a proxy that the environment names, even for this address.
HEALTHCHECK --interval=30s --timeout=10s --start-period=1h \
    CMD ["python", "-c", "from http.client import HTTPConnection as C; c = C('127.0.0.1', 7860, timeout=5); c.request('GET', '/healthz'); exit(c.getresponse().status != 200)"]
ENTRYPOINT ["python", "app.py", "--host", "0.0.0.0"]
