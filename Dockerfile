# docker build --target cpu -t stylize:cpu .    Targets: cpu (the default), gpu (CUDA 13; never run on a GPU yet), and
# gatys, the jobs' worker, which alone has torch. Which torch is the index's choice: PyPI's brings CUDA, several GB; for
# workers without a GPU name that of torch's CPU builds with --build-arg PIP_EXTRA_INDEX_URL=...
# --build-arg EXTRAS=video adds that extra (by commas, any of pyproject.toml's) to each of them.
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS requirements
ARG EXTRAS=
WORKDIR /build
COPY constraints.txt pyproject.toml ./
RUN python3 -c "import os, pathlib, tomllib; \
project = tomllib.loads(pathlib.Path('pyproject.toml').read_text())['project']; \
extras = project['optional-dependencies']; \
asked = [name for name in os.environ['EXTRAS'].split(',') if name]; \
common = sum((extras[name] for name in ['container', 'distributed', *asked]), project['dependencies']); \
[pathlib.Path(f'{name}.txt').write_text('\n'.join(common + extras[name])) for name in ('cpu', 'gpu', 'gatys')]" \
 && python3 -m venv --without-pip /opt/stylize

# onnxruntime and onnxruntime-gpu share an import name and must never meet: a stage each. Its library for C, 35 MB, is
# of no use to Python, whose binding has all of it once more.
FROM requirements AS cpu-packages
RUN python3 -m pip --python /opt/stylize install --no-cache-dir --constraint constraints.txt --requirement cpu.txt \
 && rm /opt/stylize/lib/python3*/site-packages/onnxruntime/capi/libonnxruntime.so.*

FROM requirements AS gpu-packages
RUN python3 -m pip --python /opt/stylize install --no-cache-dir --constraint constraints.txt --requirement gpu.txt

# The worker's large pictures need ONNX Runtime too: its torch lies on top of the web tier's packages.
FROM cpu-packages AS gatys-packages
ARG PIP_EXTRA_INDEX_URL
RUN python3 -m pip --python /opt/stylize install --no-cache-dir --constraint constraints.txt --requirement gatys.txt

FROM ${PYTHON_IMAGE} AS runtime
ARG COMMIT=unknown
LABEL org.opencontainers.image.title="stylize" \
      org.opencontainers.image.description="A style-transfer service: POST a photo, get a painting back" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${COMMIT}"
ENV PATH=/opt/stylize/bin:${PATH} \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    STYLIZE_COMMIT=${COMMIT} \
    STYLIZE_HOST=0.0.0.0 \
    STYLIZE_PORT=8000
WORKDIR /app
EXPOSE 8000
STOPSIGNAL SIGTERM
USER 65532:65532
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \
    CMD ["python", "-c", "import os, urllib.request as http; http.urlopen(f'http://127.0.0.1:{os.environ[\"STYLIZE_PORT\"]}/livez', timeout=2)"]
# The first process reaps what others leave behind and passes signals on.
ENTRYPOINT ["dumb-init", "--", "python", "-m", "service"]

FROM runtime AS gpu
COPY --from=gpu-packages /opt/stylize /opt/stylize
COPY model_store model_store
COPY service service
RUN ["python", "-m", "service.models", "model_store"]

FROM runtime AS gatys
COPY --from=gatys-packages /opt/stylize /opt/stylize
COPY model_store model_store
COPY service service
RUN ["python", "-m", "service.models", "model_store"]
HEALTHCHECK NONE
ENTRYPOINT ["dumb-init", "--", "python", "-m", "service.jobs.distributed"]

FROM runtime AS cpu
COPY --from=cpu-packages /opt/stylize /opt/stylize
COPY model_store model_store
COPY service service
RUN ["python", "-m", "service.models", "model_store"]
