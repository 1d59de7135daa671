# syntax=docker/dockerfile:1
FROM python:3.11-slim-bookworm AS build
COPY --from=ghcr.io/astral-sh/uv:0.9 /uv /usr/local/bin/uv
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never UV_PROJECT_ENVIRONMENT=/app/.venv
WORKDIR /src
COPY pyproject.toml uv.lock ./
RUN uv sync --frozen --extra kafka --no-install-project
COPY . .
RUN uv sync --frozen --extra kafka --no-editable

FROM python:3.11-slim-bookworm
RUN useradd --create-home --uid 10001 headrace \
 && install -d -m 1777 /data \
 && install -d /repo
COPY --from=build /app/.venv /app/.venv
ENV PATH=/app/.venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HEADRACE_REPO=/repo \
    HEADRACE_DATA_DIR=/data \
    HEADRACE_HOST=0.0.0.0
USER 10001
WORKDIR /home/headrace
EXPOSE 6566
ENTRYPOINT ["headrace"]
CMD ["serve"]
