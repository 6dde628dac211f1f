"""What each dimension of the public code needs: packages, weights, programs and GPU memory.

Facts from the public code at the pinned commit (`vbench2/utils.py`, `vbench/utils.py` and the
modules of the dimensions); memory of VBench 2.0 as its maintainers measured it (issue 142 of the
public repository), unknown for VBench 1.0. Only temporal flickering of VBench 1.0 needs no weights.
"""

from dataclasses import dataclass, replace
from typing import Literal

from longtake.evaluation.vbench.suites import VBENCH1, VBENCH2, Suite

Place = Literal["cache", "torch", "hf"]


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A file or folder that must be on the disk before a dimension can run."""

    name: str
    """What people call it."""
    path: str
    """Relative to its place."""
    get: str
    """Where it comes from."""
    place: Place = "cache"
    """`cache`: the suite's folder of weights; `torch`: $TORCH_HOME/hub; `hf`: $HF_HOME/hub."""


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """Needs of one dimension, beyond the checkout itself."""

    group: str
    """Dimensions of one group can share an environment."""
    modules: tuple[str, ...]
    """Importable names."""
    weights: tuple[Weights, ...] = ()
    programs: tuple[str, ...] = ()
    memory_gib: float | None = None
    """GPU memory; None: not known."""
    folder: str = ""
    """Folder of the checkout that only the right version has."""
    config: str = ""
    """File of the checkout whose `text_model_name` must exist: one commit has its author's path."""


def _hf(name: str, path: str) -> Weights:
    return Weights(name=name, path=path, get=f"hf download {path} --local-dir CACHE/{path}")


def _drive(name: str, path: str, identifier: str) -> Weights:
    return Weights(name=name, path=path, get=f"Google Drive file {identifier}")


def _hub(name: str, path: str, get: str) -> Weights:
    return Weights(name=name, path=path, get=get, place="torch")


_BASE = ("torch", "torchvision", "cv2", "decord", "tqdm", "numpy", "PIL")
_BASE2 = (*_BASE, "scenedetect", "gdown", "yaml")
_SIGLIP = Weights(
    name="SigLIP",
    path="models--google--siglip-so400m-patch14-384",
    get="hf download google/siglip-so400m-patch14-384",
    place="hf",
)
_LLAVA = (_hf("LLaVA-Video-7B", "lmms-lab/LLaVA-Video-7B-Qwen2"), _SIGLIP)
_QWEN = _hf("Qwen2.5-7B", "Qwen/Qwen2.5-7B-Instruct")
_COTRACKER = (
    _hub(
        "CoTracker code",
        "facebookresearch_co-tracker_main",
        "git clone of facebookresearch/co-tracker",
    ),
    _hub(
        "CoTracker2",
        "checkpoints/cotracker2.pth",
        "https://huggingface.co/facebook/cotracker/resolve/main/cotracker2.pth",
    ),
)
_RAFT = Weights(
    name="RAFT",
    path="raft_model/models/raft-things.pth",
    get="models.zip of https://dl.dropboxusercontent.com/s/4j4z58wuv8o0mfz/models.zip, unpacked",
)

_llava = Requirement(
    group="llava", modules=(*_BASE2, "llava", "transformers"), weights=_LLAVA, memory_gib=38
)
_llava_qwen = replace(_llava, weights=(*_LLAVA, _QWEN), memory_gib=50)
_cotracker = Requirement(group="cotracker", modules=_BASE2, weights=_COTRACKER, memory_gib=18)

_VBENCH2: dict[str, Requirement] = {
    "Composition": _llava,
    "Diversity": Requirement(
        group="cotracker",
        modules=_BASE2,
        weights=(
            _hub(
                "VGG19",
                "checkpoints/vgg19-dcbb9e9d.pth",
                "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth",
            ),
        ),
        memory_gib=28,
    ),
    "Instance_Preservation": Requirement(
        group="swift",
        modules=(*_BASE2, "swift"),
        weights=(
            Weights(
                name="instance anomaly detector",
                path="instance_anomaly_detector/model",
                get="Google Drive folder 106rnzZvH-VUKkz8dMPFflD6tqtbSgXwh, and the Qwen2.5-VL "
                "model that its args.json names",
            ),
        ),
        programs=("ffmpeg", "ffprobe"),
        memory_gib=3,
        folder="vbench2/third_party/Instance_detector",
    ),
    "Motion_Rationality": _llava,
    "Camera_Motion": _cotracker,
    "Complex_Landscape": _llava_qwen,
    "Complex_Plot": _llava_qwen,
    "Dynamic_Attribute": _llava,
    "Dynamic_Spatial_Relationship": _llava,
    "Human_Interaction": _llava_qwen,
    "Motion_Order_Understanding": _llava_qwen,
    "Human_Anatomy": Requirement(
        group="yolo-world",
        modules=(*_BASE2, "mmcv", "mmdet", "mmyolo", "mmengine", "timm"),
        weights=(
            _drive(
                "YOLO-World",
                "YOLO-World/yolo_world_v2_xl_obj365v1_goldg_cc3mlite_pretrain-5daf1395.pth",
                "1qo-K1kum7yiEwIlN1TWDvABXX6qriUen (the download script says YOLO-Wold: wrong)",
            ),
            _drive(
                "human anomaly detector",
                "anomaly_detector/human.pth",
                "1mlSURYOi_vN9ST1wzEhJaVO6-ZoES8UT",
            ),
            _drive(
                "face anomaly detector",
                "anomaly_detector/face.pth",
                "1e2qTjrtsYlkWLql0qj8DqaNZ09KuV8Qo",
            ),
            _drive(
                "hand anomaly detector",
                "anomaly_detector/hand.pth",
                "1j3QeAcAtdLe5BFgK-c33UaHV6-iUto0i",
            ),
        ),
        memory_gib=5,
        folder="vbench2/third_party/ViTDetector",
        config="vbench2/third_party/YOLO-World/yolo_world_v2_xl_vlpan_bn_2e-3_100e_4x8gpus_"
        "obj365v1_goldg_train_lvis_minival.py",
    ),
    "Human_Clothes": replace(
        _llava,
        group="llava (vendored)",
        modules=(*_BASE2, "transformers"),
        folder="vbench2/third_party/LLaVA_NeXT",
    ),
    "Human_Identity": Requirement(
        group="cotracker",
        modules=(*_BASE2, "retinaface", "einops", "imageio", "scipy"),
        weights=(
            _drive("ArcFace", "arcface/resnet18_110.pth", "1m387vGTQ4GW4I4PQfBsCC-Y9aEp6zjvy"),
            _hub(
                "RetinaFace",
                "checkpoints/retinaface_resnet50_2020-07-20-f168fae3c.zip",
                "https://github.com/ternaus/retinaface/releases/download/0.01/"
                "retinaface_resnet50_2020-07-20-f168fae3c.zip",
            ),
        ),
        memory_gib=3,
    ),
    "Material": _llava,
    "Mechanics": _llava,
    "Multi-View_Consistency": replace(
        _cotracker, modules=(*_BASE2, "easydict"), weights=(*_COTRACKER, _RAFT)
    ),
    "Thermotics": _llava,
}

_OPENAI = "https://openaipublic.azureedge.net/clip/models/"
_CLIP_B32 = Weights(
    name="CLIP ViT-B/32",
    path="clip_model/ViT-B-32.pt",
    get=f"{_OPENAI}40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt",
)
_CLIP_L14 = Weights(
    name="CLIP ViT-L/14",
    path="clip_model/ViT-L-14.pt",
    get=f"{_OPENAI}b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836/ViT-L-14.pt",
)
_USED_MODELS = "https://huggingface.co/OpenGVLab/VBench_Used_Models/resolve/main/"


def _old(*modules: str, group: str = "vbench", weights: tuple[Weights, ...] = ()) -> Requirement:
    return Requirement(group=group, modules=(*_BASE, *modules), weights=weights)


_grit = _old(
    "detectron2",
    group="detectron2",
    weights=(
        Weights(
            name="GRiT",
            path="grit_model/grit_b_densecap_objectdet.pth",
            get="https://datarelease.blob.core.windows.net/grit/models/"
            "grit_b_densecap_objectdet.pth",
        ),
    ),
)
_viclip = _old(
    "clip",
    weights=(
        Weights(
            name="ViCLIP",
            path="ViCLIP/ViClip-InternVid-10M-FLT.pth",
            get=f"{_USED_MODELS}ViClip-InternVid-10M-FLT.pth",
        ),
        Weights(
            name="CLIP vocabulary",
            path="ViCLIP/bpe_simple_vocab_16e6.txt.gz",
            get="bpe_simple_vocab_16e6.txt.gz of the public OpenAI CLIP repository",
        ),
    ),
)

_VBENCH1: dict[str, Requirement] = {
    "subject_consistency": _old(
        weights=(
            Weights(
                name="DINO code",
                path="dino_model/facebookresearch_dino_main",
                get="git clone of facebookresearch/dino",
            ),
            Weights(
                name="DINO ViT-B/16",
                path="dino_model/dino_vitbase16_pretrain.pth",
                get="https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/"
                "dino_vitbase16_pretrain.pth",
            ),
        )
    ),
    "background_consistency": _old("clip", weights=(_CLIP_B32,)),
    "temporal_flickering": _old(),
    "motion_smoothness": _old(
        "omegaconf",
        weights=(
            Weights(
                name="AMT-S",
                path="amt_model/amt-s.pth",
                get="https://huggingface.co/lalala125/AMT/resolve/main/amt-s.pth",
            ),
        ),
    ),
    "dynamic_degree": _old("easydict", weights=(_RAFT,)),
    "aesthetic_quality": _old(
        "clip",
        weights=(
            _CLIP_L14,
            Weights(
                name="LAION aesthetic head",
                path="aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth",
                get="sa_0_4_vit_l_14_linear.pth of the public LAION aesthetic predictor",
            ),
        ),
    ),
    "imaging_quality": _old(
        "pyiqa",
        weights=(
            Weights(
                name="MUSIQ",
                path="pyiqa_model/musiq_spaq_ckpt-358bb6af.pth",
                get="https://github.com/chaofengc/IQA-PyTorch/releases/download/v0.1-weights/"
                "musiq_spaq_ckpt-358bb6af.pth",
            ),
        ),
    ),
    "object_class": _grit,
    "multiple_objects": _grit,
    "human_action": _old(
        "clip",
        "timm",
        weights=(
            Weights(
                name="UMT",
                path="umt_model/l16_ptk710_ftk710_ftk400_f16_res224.pth",
                get=f"{_USED_MODELS}l16_ptk710_ftk710_ftk400_f16_res224.pth",
            ),
        ),
    ),
    "color": _grit,
    "spatial_relationship": _grit,
    "scene": _old(
        "transformers",
        weights=(
            Weights(
                name="Tag2Text",
                path="caption_model/tag2text_swin_14m.pth",
                get="https://huggingface.co/spaces/xinyu1205/recognize-anything/resolve/main/"
                "tag2text_swin_14m.pth",
            ),
        ),
    ),
    "appearance_style": _old("clip", weights=(_CLIP_B32,)),
    "temporal_style": _viclip,
    "overall_consistency": _viclip,
}

REQUIREMENTS: dict[str, dict[str, Requirement]] = {
    VBENCH2.name: _VBENCH2,
    VBENCH1.name: _VBENCH1,
}
"""Suite -> dimension -> needs."""

NATIVE = {VBENCH1.name: ("temporal_flickering",), VBENCH2.name: ()}
"""Suite -> dimensions with an implementation of ours."""

_SETUP = {
    VBENCH2.name: (
        "python3.10 -m venv ENV; ENV/bin/pip install torch==2.5.1 torchvision==0.20.1; "
        "ENV/bin/pip install -r CHECKOUT/VBench-2.0/requirement.txt"
    ),
    VBENCH1.name: (
        "python3.11 -m venv ENV; ENV/bin/pip install torch==2.5.1 torchvision==0.20.1 vbench "
        "'setuptools<81'"
    ),
}
_GROUP_SETUP = {
    "llava": "; also flash-attn 2.7.2 and llava from the public LLaVA-NeXT repository",
    "llava (vendored)": "; also flash-attn 2.7.2; without llava",
    "yolo-world": (
        "; also mmcv 2.2.0 from OpenMMLab's index, then raise mmcv_maximum_version to 2.3.0 in "
        "mmdet/__init__.py and mmyolo/__init__.py"
    ),
    "swift": "; also ms-swift; ffmpeg with libx264 must be on PATH",
    "detectron2": "; also detectron2 from its public repository",
}


def setup_command(suite: Suite, group: str) -> str:
    """How to make the environment of a group, as far as the public instructions go."""
    return _SETUP[suite.name] + _GROUP_SETUP.get(group, "")
