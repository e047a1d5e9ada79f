"""Data sets of medicine and wildlife."""

import json
import random
from collections import Counter
from pathlib import Path

from layouts.base import RARE, Expected, category_counts, cycle, image, layout, one, ones, table

XRAY_FINDINGS = [
    *("No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema"),
    *("Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture"),
    "Support Devices",
]
CHEXPERT_TASK = ["Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion"]  # of the competition


@layout
def ham10000(root: Path) -> Expected:
    """HAM10000 as on Kaggle: images in two folders, several images of a lesion, no extension, no split."""
    rows = []
    for i, dx in enumerate(cycle(("nv", "mel", "bkl", "vasc"), (24, 8, 6, 3))):
        name = f"ISIC_{24306 + i:07}"
        image(root / f"HAM10000_images_part_{1 + (i > 20)}" / f"{name}.jpg")
        rows.append((f"HAM_{i // 2:07}", name, dx, "histo", "" if i == 3 else 40.0 + i, "male", "back"))
    read = table(root / "HAM10000_metadata.csv", "lesion_id,image_id,dx,dx_type,age,sex,localization", rows)
    return one(Counter(row["dx"] for row in read))


@layout
def isic_2019(root: Path) -> Expected:
    """ISIC 2019: one column a class with 1.0 and 0.0, of which UNK is never 1; the images in a folder of their own."""
    names = ["MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK"]
    rows = []
    for i, name in enumerate(cycle(names[:-1], (9, 20, 7, 4, 6, 3, 3, 4))):
        stem = f"ISIC_{i:07}" + "_downsampled" * (i % 7 == 0)
        image(root / "ISIC_2019_Training_Input" / f"{stem}.jpg")
        rows.append((stem, *[float(name == other) for other in names]))
    (root / "ISIC_2019_Training_Input/ATTRIBUTION.txt").write_text("made up")
    read = table(root / "ISIC_2019_Training_GroundTruth.csv", ",".join(("image", *names)), rows)
    header = "image,age_approx,anatom_site_general,lesion_id,sex"
    table(root / "ISIC_2019_Training_Metadata.csv", header, [(row[0], 55.0, "", "", "male") for row in rows])
    return one(ones(read, names[:-1]))


def _nih(root: Path, name: str, trailing: str) -> Expected:
    rng = random.Random(1)
    rows: list[tuple[object, ...]] = []
    for i in range(40):
        patient, follow = i // 3 + 1, i % 3
        finding = rng.choice(("No Finding", "No Finding", "Infiltration", "Effusion|Infiltration", "Hernia|Effusion"))
        file = f"{patient:08}_{follow:03}.png"
        image(root / f"images_{1 + i // 20:03}/images/{file}", "L")
        end = (2682, 2749, 0.143, 0.143) + ("",) * len(trailing)
        rows.append((file, finding, follow, patient, 58, "M", "PA", *end))
    header = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    header += f"OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]{trailing}"
    read = table(root / name, header, rows)
    box = "Image Index,Finding Label,Bbox [x,y,w,h],,,"
    table(root / "BBox_List_2017.csv", box, [(rows[0][0], "Hernia", 1.0, 2.0, 3.0, 4.0, "", "", "")])
    for part, some in (("train_val", rows[:30]), ("test", rows[30:])):
        (root / f"{part}_list.txt").write_text("\n".join(str(row[0]) for row in some))
    counts = Counter(finding for row in read for finding in row["Finding Labels"].split("|"))
    return Expected({"all": counts}, True, len(read))


@layout
def nih_chestx_ray14(root: Path) -> Expected:
    """NIH ChestX-ray14: findings joined by |, images in twelve folders, brackets with a comma in the header."""
    return _nih(root, "Data_Entry_2017_v2020.csv", "")


@layout
def nih_chestx_ray14_first_table(root: Path) -> Expected:
    """The first table of NIH ChestX-ray14: a comma ends each line."""
    return _nih(root, "Data_Entry_2017.csv", ",")


@layout
def chexpert(root: Path) -> Expected:
    """CheXpert: paths start above the table's folder; 1.0, 0.0, -1.0 if uncertain, blank if not mentioned."""
    base = "CheXpert-v1.0-small"
    header = ",".join(("Path,Sex,Age,Frontal/Lateral,AP/PA", *XRAY_FINDINGS))
    rng = random.Random(2)
    splits = {}
    for split, name, size, values in (
        ("train", "train", 60, ("1.0", "0.0", "-1.0", "", "")),
        ("test", "valid", 20, "01"),
    ):
        rows = []
        for i in range(size):
            path = f"{base}/{name}/patient{i // 2 + 1:05}/study1/view{i % 2 + 1}_{('frontal', 'lateral')[i % 2]}.jpg"
            image(root / path)
            cells = [f"{float(cell)}" if cell else "" for cell in rng.choices(values, k=len(XRAY_FINDINGS))]
            rows.append((path, "Female", 68, ("Frontal", "Lateral")[i % 2], ("AP", "")[i % 2], *cells))
        splits[split] = ones(table(root / base / f"{name}.csv", header, rows), CHEXPERT_TASK)
    return Expected(splits, True, 80)


@layout
def covid_chestxray(root: Path) -> Expected:
    """covid-chestxray: findings with slashes, notes of several lines, CRLF, a comma at the end of each line."""
    header = (
        "patientid,offset,sex,age,finding,RT_PCR_positive,survival,intubated,intubation_present,went_icu,in_icu,"
        "needed_supplemental_O2,extubated,temperature,pO2_saturation,leukocyte_count,neutrophil_count,"
        "lymphocyte_count,view,modality,date,location,folder,filename,doi,url,license,clinical_notes,other_notes,"
    )
    names = ("Pneumonia/Viral/COVID-19", "Pneumonia", "Pneumonia/Viral/SARS", "todo")
    rows: list[tuple[object, ...]] = []
    for i, finding in enumerate(cycle(names, (20, 8, 5, 3))):
        file = f"auntminnie-{i}.{('jpg', 'jpeg', 'png')[i % 3]}"
        image(root / "images" / file)
        place = (
            "2020",
            "Wuhan, China – café",
            "images",
            file,
            "",
            "https://example.org",
            "",
            "Notes,\nin two lines",
            "",
            "",
        )
        rows.append((i // 2, 0, "M", 65, finding, "Y", *[""] * 12, "PA", "X-ray", *place))
    read = table(root / "metadata.csv", header, rows, "\r\n")
    return one(Counter(row["finding"] for row in read))


@layout
def open_images(root: Path) -> Expected:
    """Open Images: one row an image and label, with Confidence 1 for yes and 0 for no. Its training images are read."""
    rng = random.Random(4)
    counts: dict[str, Counter[str]] = {}
    for name, size in (("train", 40), ("validation", 10), ("test", 10)):
        rows = []
        for i in range(size):
            identifier = f"{size * len(name) * 4096 + i * 977:016x}"
            image(root / name / f"{identifier}.jpg")
            for label in rng.sample(("/m/01g317", "/m/0bt9lr", "/m/01yrx"), rng.choice((1, 2, 3))):
                rows.append((identifier, "verification", label, rng.choice((1, 1, 0))))
        file = root / f"{name}-annotations-human-imagelabels.csv"
        read = table(file, "ImageID,Source,LabelName,Confidence", rows)
        counts[name] = Counter(row["LabelName"] for row in read if row["Confidence"] == "1")
    names = [("/m/01g317", "Person"), ("/m/0bt9lr", "Dog"), ("/m/01yrx", "Cat"), ("/m/0ch_cf", "Fish")]
    table(root / "oidv7-class-descriptions.csv", "LabelName,DisplayName", names)
    return Expected({"all": counts["train"]}, True, 40)


@layout
def iwildcam_of_wilds(root: Path) -> Expected:
    """iWildCam of WILDS: metadata.csv with splits id_val and id_test beside train, val and test; images in train/."""
    rng = random.Random(5)
    rows: list[tuple[object, ...]] = []
    sizes = {"train": 30, "val": 10, "test": 10, "id_val": 8, "id_test": 8}
    for i, split in enumerate(split for split, size in sizes.items() for _ in range(size)):
        file = f"{i:08x}-21bc-11ea-a13a-137349068a90.jpg"
        image(root / "train" / file)
        y = rng.choice((0, 0, 0, 1, 24))
        rows.append((i, split, 3, 7, 9, f"seq-{i // 3}", file, "2013-06-05 05:44:19.000", y, y + 2))
    header = ",split,location_remapped,location,sequence_remapped,seq_id,filename,datetime,y,category_id"
    read = table(root / "metadata.csv", header, rows)
    table(root / "categories.csv", "category_id,name,y", [(2, "empty", 0), (3, "ocelot", 1), (26, "tapir", 24)])
    splits = {split: Counter(row["y"] for row in read if row["split"] == split) for split in ("train", "val", "test")}
    return Expected(splits)


@layout
def inaturalist_2021(root: Path) -> Expected:
    """iNaturalist 2021: train.json and val.json with one category an image, images in a folder for each species."""
    species = ("Turdus merula", "Rosa canina", "Apis mellifera")
    categories = []
    for i, name in enumerate(species):
        folder = f"{i:05}_Animalia_Chordata_{name.replace(' ', '_')}"
        taxon = {"kingdom": "Animalia", "genus": name.split()[0], "specific_epithet": name.split()[1]}
        entry = {"id": i, "name": name, "common_name": "Made up", "supercategory": "Birds", "image_dir_name": folder}
        categories.append({**entry, **taxon})
    splits = {}
    for split, name, sizes in (("train", "train", RARE), ("test", "val", (3, 3, 3))):
        images, annotations = [], []
        for i, label in enumerate(cycle("012", sizes)):
            file = f"{name}/{categories[int(label)]['image_dir_name']}/{i:08x}-8c4b-4b34-9c1d-{name}.jpg"
            image(root / file)
            entry = {"id": i, "width": 12, "height": 12, "file_name": file, "license": 0, "rights_holder": "A"}
            images.append(entry | {"date": "2017-01-20 00:04:00+00:00", "latitude": 45.6, "location_uncertainty": None})
            annotations.append({"id": i, "image_id": i, "category_id": int(label)})
        content = {"info": {}, "images": images, "categories": categories, "annotations": annotations, "licenses": []}
        (root / f"{name}.json").write_text(json.dumps(content))
        splits[split] = category_counts(root / f"{name}.json")
    test = [{"id": 0, "file_name": "public_test/0000.jpg", "width": 12, "height": 12}]
    (root / "public_test.json").write_text(json.dumps({"info": {}, "images": test, "licenses": []}))
    return Expected(splits)


@layout
def iwildcam_2021(root: Path) -> Expected:
    """iWildCam 2021: one annotation file with one category an image; the file of test images has no annotations."""
    images, annotations = [], []
    categories = [{"id": i, "name": name} for i, name in ((0, "empty"), (2, "tayassu pecari"), (372, "homo sapiens"))]
    for i, label in enumerate(cycle(("0", "2", "372"))):
        name = f"{i:08x}-21bc-11ea-a13a-137349068a90"
        image(root / f"train/{name}.jpg")
        place = {
            "location": i // 4,
            "sub_location": 0,
            "seq_id": f"s{i // 3}",
            "seq_num_frames": 3,
            "seq_frame_num": i % 3,
        }
        size = {"width": 12, "height": 12, "datetime": "2013-06-05 05:44:19.000"}
        images.append({"id": name, "file_name": f"{name}.jpg", **place, **size})
        annotations.append({"id": f"a{i}", "image_id": name, "category_id": int(label)})
    content = {"annotations": annotations, "images": images, "categories": categories, "info": {}}
    file = root / "metadata/iwildcam2021_train_annotations.json"
    file.parent.mkdir()
    file.write_text(json.dumps(content))
    image(root / "test/8b31d3be-21bc-11ea-a13a-137349068a90.jpg")
    test = [{"id": "8b31d3be-21bc-11ea-a13a-137349068a90", "file_name": "8b31d3be-21bc-11ea-a13a-137349068a90.jpg"}]
    content = {"images": test, "categories": categories, "info": {}}
    (root / "metadata/iwildcam2021_test_information.json").write_text(json.dumps(content))
    return one(category_counts(file))
