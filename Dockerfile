FROM condaforge/miniforge3:latest
LABEL io.github.snakemake.containerized="true"
LABEL io.github.snakemake.conda_env_hash="f8f1b66e079a884dac2b2bc58b129426b541d42fbfad749f8f89c1a382944054"
# Conda environment:
#   source: envs/data.yaml
#   prefix: /conda-envs/8300c55c3a285b90c027cb2abaf1de16
#   # Data and reports, no model: reading, cutting, checking and filtering; tables, figures and pages.
#   channels:
#     - conda-forge
#   dependencies:
#     - python=3.11
#     - pip
#     - pip:
#         - datasets==5.2.0
#         - pyarrow==26.0.1
#         - py3langid==0.4.0
#         - resiliparse==2.0.1
#         - fastwarc==2.0.1
#         - rensa==0.5.0
#         - pandas==3.1.1
#         - matplotlib==3.11.2
#         - jinja2==3.1.6
RUN mkdir -p /conda-envs/8300c55c3a285b90c027cb2abaf1de16
COPY envs/data.yaml /conda-envs/8300c55c3a285b90c027cb2abaf1de16/environment.yaml
# Conda environment:
#   source: envs/inference.yaml
#   prefix: /conda-envs/a608a2973562fbceae56e3645b8ab1e0
#   # Everything else that holds a model or its tokenizer: fetching, measuring lengths, writing, rating, evaluation, merging.
#   channels:
#     - conda-forge
#   dependencies:
#     - python=3.11
#     - pip
#     - pip:
#         - torch==2.13.0
#         - transformers==5.23.0
#         - peft==0.21.2
#         - accelerate==1.15.0
#         - bitsandbytes==0.50.2
#         - gguf==0.19.0
#         - pandas==3.1.1
#         - pyarrow==26.0.1
#         - scikit-learn==1.9.1
#         - sacrebleu==2.6.0
#         - openai==3.57.0
RUN mkdir -p /conda-envs/a608a2973562fbceae56e3645b8ab1e0
COPY envs/inference.yaml /conda-envs/a608a2973562fbceae56e3645b8ab1e0/environment.yaml
# Conda environment:
#   source: envs/training.yaml
#   prefix: /conda-envs/24cd9e11e8cdf7ce586524d641a64652
#   # Training of the backward and the forward model.
#   channels:
#     - conda-forge
#   dependencies:
#     - python=3.11
#     - pip
#     - pip:
#         - torch==2.13.0
#         - transformers==5.23.0
#         - peft==0.21.2
#         - trl==1.16.0
#         - datasets==5.2.0
#         - accelerate==1.15.0
#         - bitsandbytes==0.50.2
#         - pandas==3.1.1
#         - pyarrow==26.0.1
RUN mkdir -p /conda-envs/24cd9e11e8cdf7ce586524d641a64652
COPY envs/training.yaml /conda-envs/24cd9e11e8cdf7ce586524d641a64652/environment.yaml

RUN conda env create --prefix /conda-envs/8300c55c3a285b90c027cb2abaf1de16 --file /conda-envs/8300c55c3a285b90c027cb2abaf1de16/environment.yaml && \
    conda env create --prefix /conda-envs/a608a2973562fbceae56e3645b8ab1e0 --file /conda-envs/a608a2973562fbceae56e3645b8ab1e0/environment.yaml && \
    conda env create --prefix /conda-envs/24cd9e11e8cdf7ce586524d641a64652 --file /conda-envs/24cd9e11e8cdf7ce586524d641a64652/environment.yaml && \
    conda clean --all -y
