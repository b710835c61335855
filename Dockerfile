# Two stages: the first installs into /venv, the second holds that and nothing that builds.
# The root file system may be read-only:  docker run --read-only -e MISTRAL_API_KEY -v ./proxy.yaml:/etc/mistral-proxy/proxy.yaml:ro …
FROM python:3.13-slim AS build
WORKDIR /src
RUN python -m venv /venv
COPY requirements.lock ./
RUN /venv/bin/pip install --no-cache-dir --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY config ./config
COPY proxy ./proxy
RUN /venv/bin/pip install --no-cache-dir --no-deps .

FROM python:3.13-slim
RUN useradd --system --uid 10001 --no-create-home proxy && install -d -o 10001 -m 0700 /var/lib/mistral-proxy
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 XDG_STATE_HOME=/var/lib
# The journal of the ledger, and the ledger itself unless it is in PostgreSQL: they must outlive the container.
VOLUME /var/lib/mistral-proxy
USER 10001
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=2s --start-period=5s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/health/live', timeout=2)"]
ENTRYPOINT ["mistral-proxy"]
CMD ["serve", "--config", "/etc/mistral-proxy/proxy.yaml", "--host", "0.0.0.0", "--port", "8080"]
