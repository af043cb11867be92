# attested-sds in a container: the command `sds`, nothing else.
#
#   docker build -t attested-sds .
#   docker run --rm attested-sds --help
#
# Every wheel is pinned with its hash (constraints-runtime.txt). The last stage holds no compiler
# and no package manager of ours: it gets a finished virtual environment.
ARG PYTHON=3.11

FROM docker.io/library/python:${PYTHON}-slim AS build
WORKDIR /src
# Dependencies first: this layer is built again only when a pin changes.
COPY constraints.txt constraints-runtime.txt ./
RUN python -m venv /opt/sds \
 && /opt/sds/bin/pip install --no-cache-dir --disable-pip-version-check --only-binary :all: --no-deps \
      --require-hashes -r constraints-runtime.txt
# What builds our own wheel (hatchling, protoc), in an environment that stays here.
RUN python -m venv /opt/build \
 && /opt/build/bin/pip install --no-cache-dir --disable-pip-version-check --only-binary :all: --no-deps \
      --require-hashes -r constraints.txt
COPY . .
RUN /opt/build/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels . \
 && /opt/sds/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps /wheels/*.whl \
 && /opt/sds/bin/pip uninstall --yes --quiet pip \
 && find /opt/sds -name __pycache__ -prune -exec rm -rf {} + \
 # Nobody can write bytecode later, and a start without it compiles 700 modules: most of its time.
 && /opt/sds/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/sds

FROM docker.io/library/python:${PYTHON}-slim
# No user of this image is root. Where the agent must lock its memory, give the container
# CAP_IPC_LOCK or a memlock limit; where it must read what belongs to others (cgroups of pods,
# /dev/sev-guest), the deployment says so: see deploy/.
RUN groupadd --gid 65532 sds && useradd --uid 65532 --gid 65532 --no-create-home --shell /usr/sbin/nologin sds \
 && install --directory --owner=65532 --group=65532 --mode=0700 /run/attested-sds
COPY --from=build /opt/sds /opt/sds
# The standard library's bytecode, which the base image comes without.
RUN python -m compileall -q --invalidation-mode unchecked-hash -x 'site-packages|idlelib|lib2to3' \
      "$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"
ENV PATH=/opt/sds/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 65532:65532
ENTRYPOINT ["sds"]
CMD ["--help"]
