# The challenge's container of 2025 and later: no arguments, /input → /output, no network, any user.
#   docker build -t synth-inpaint .         (for the CPU: --build-arg TORCH=cpu)
#   docker run --rm --gpus all --network none -v "$PWD/in:/input" -v "$PWD/out:/output" synth-inpaint
FROM python:3.12-slim
ARG TORCH=cu126
WORKDIR /app
COPY pyproject.toml constraints.txt ./
RUN pip install --no-cache-dir -c constraints.txt torch \
    --index-url "https://download.pytorch.org/whl/$TORCH"
COPY . .
RUN pip install --no-cache-dir -c constraints.txt .
USER 10001
ENV HOME=/tmp MPLCONFIGDIR=/tmp PYTHONDONTWRITEBYTECODE=1
ENTRYPOINT ["python", "testing/inference.py"]
