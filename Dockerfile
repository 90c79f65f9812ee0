# A server: export MOSHI_PIPE_TOKEN=$(openssl rand -hex 16) && docker build -t moshi-pipe . && \
#     docker run --rm --gpus all --stop-timeout 30 -p 8998:8998 -e MOSHI_PIPE_TOKEN \
#         -v moshi-models:/home/moshi/.cache moshi-pipe model=moshiko
# Without words it serves the model in the package on the CPU. Browsers give the microphone to
# https alone, except on localhost: add `server.self_signed=true`, or put a proxy with TLS before it.
FROM python:3.12-slim-bookworm AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY conf conf
COPY examples examples
COPY moshi_pipe moshi_pipe
RUN python -m venv /opt/moshi-pipe && \
    /opt/moshi-pipe/bin/pip install --no-cache-dir '.[server]'

FROM python:3.12-slim-bookworm
COPY --from=build /opt/moshi-pipe /opt/moshi-pipe
# A new volume takes over the owner of the folder that it is mounted on.
RUN useradd --create-home --uid 10001 moshi && install -d -o moshi -g moshi /home/moshi/.cache
USER 10001
WORKDIR /home/moshi
ENV PATH=/opt/moshi-pipe/bin:$PATH
EXPOSE 8998
HEALTHCHECK --start-period=120s --interval=10s --timeout=3s \
    CMD ["python", "-c", "import ssl, urllib.request as u\nfor s in 'http', 'https':\n try: u.urlopen(f'{s}://127.0.0.1:8998/healthz', timeout=1, context=ssl._create_unverified_context()); break\n except Exception: pass\nelse: raise SystemExit(1)"]
ENTRYPOINT ["moshi-pipe", "source=websocket", "sink=websocket", "server.host=0.0.0.0", "server.token_env=MOSHI_PIPE_TOKEN"]
