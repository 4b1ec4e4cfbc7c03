# A worker, and Flower: `docker run IMAGE celery -A somatize_worker worker -Q gpu` with SOMA_REDIS_URL set.
# Holds no secret: the server's address and the token come from the environment of the container.

FROM python:3.11-slim-bookworm AS build
RUN python3 -m venv /opt/venv
WORKDIR /src
# What changes rarely comes first, so that the dependencies' layer is kept while the code changes.
COPY pyproject.toml README.md LICENSE ./
RUN mkdir somatize_worker && touch somatize_worker/__init__.py \
 && /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check ".[flower]"
COPY somatize_worker somatize_worker
RUN /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps --force-reinstall .

FROM python:3.11-slim-bookworm
RUN useradd --create-home --uid 10001 soma \
 && install -d -o soma -g soma /data /data/store /data/envs
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    SOMA_STORE=file:///data/store \
    SOMA_ENV_FOLDER=/data/envs
USER soma
WORKDIR /home/soma
STOPSIGNAL SIGTERM
CMD ["celery", "-A", "somatize_worker", "worker", "-Q", "cpu"]
