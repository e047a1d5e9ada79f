"""Tables as people have them: how they are written, what their columns are called, and what task they are."""

import re
from pathlib import Path

import pytest
import torch

from lt_cb.__main__ import main
from lt_cb.data import LongTailedDataModule
from lt_cb.data.sources import Manifest
from lt_cb.data.sources.reading import read_csv, read_table
from lt_cb.metrics import average_precision

ROWS = "path,label,split\nä.png,01,train\nb.png,,val\n"
COLUMNS = {"path": ["ä.png", "b.png"], "label": ["01", ""], "split": ["train", "val"]}


class TestReading:
    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
    @pytest.mark.parametrize("delimiter", [",", ";", "\t"])
    def test_delimiters_and_encodings(self, tmp_path: Path, encoding: str, delimiter: str) -> None:
        file = tmp_path / "t.csv"
        file.write_bytes(ROWS.replace(",", delimiter).replace("\n", "\r\n").encode(encoding))
        assert read_table(file) == COLUMNS

    def test_the_header_decides_on_the_delimiter(self, tmp_path: Path) -> None:
        file = tmp_path / "t.csv"
        file.write_text('path,"a;b;c;d",split\n"a\n,b",x;y;z;u;v,train\n')
        assert read_table(file) == {"path": ["a\n,b"], "a;b;c;d": ["x;y;z;u;v"], "split": ["train"]}

    def test_json_lines(self, tmp_path: Path) -> None:
        file = tmp_path / "metadata.jsonl"
        file.write_text('{"file_name": "a\u2028", "label": "01"}\n\n{"file_name": "b", "more": [1, null]}\n', "utf-8")
        assert read_table(file) == {"file_name": ["a\u2028", "b"], "label": ["01", None], "more": [None, [1, None]]}
        for wrong in ("{", "3"):
            file.write_text('{"file_name": "a"}\n' + wrong)
            with pytest.raises(ValueError, match=r"line 2 of '\S+' is no JSON object .*: write one on each line"):
                read_table(file)

    def test_equal_names_raise(self, tmp_path: Path) -> None:
        (tmp_path / "t.csv").write_text("path,label, label,split\na,b,c,train\n")
        with pytest.raises(ValueError, match=r"'\S+' has several columns 'label': rename or remove all but one"):
            read_csv(tmp_path / "t.csv", "")

    def test_columns_without_a_name_are_left_out(self, tmp_path: Path) -> None:
        (tmp_path / "t.csv").write_text(",Unnamed: 1,path,class,\n0,0,a,b,\n1,1,c,d,\n")
        assert read_table(tmp_path / "t.csv") == {"path": ["a", "c"], "class": ["b", "d"]}


def write(root: Path, name: str, text: str, images: list[str]) -> str:
    """Write a table, and an empty file for each image."""
    for image in images:
        (root / image).parent.mkdir(parents=True, exist_ok=True)
        (root / image).touch()
    (root / name).write_text(text)
    return str(root / name)


def paths(source: Manifest, split: str) -> list[str]:
    """Return the paths of a split, which must exist, relative to the images' folder."""
    source.files(split)
    return [path.decode() for path in source.listing(split).paths.tolist()]


class TestRealTables:
    """Small tables in the form of published ones."""

    @pytest.fixture(autouse=True)
    def info(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level("INFO", "lightning.pytorch")

    def test_ham10000(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        rows = [f"HAM_{i // 2},ISIC_{i},{'nv' if i < 7 else 'mel'},histo,80.0,male,scalp" for i in range(10)]
        text = "\n".join(["lesion_id,image_id,dx,dx_type,age,sex,localization", *rows])
        file = write(tmp_path, "meta.csv", text, [f"images/ISIC_{i}.jpg" for i in range(10)])
        data = LongTailedDataModule("Manifest", file, image_size=8)
        assert (data.source.class_names, data.source.counts) == (["mel", "nv"], [2, 6])
        assert len(paths(data.source, "test")) == 2
        assert all(path.endswith(".jpg") for path in paths(data.source, "train"))
        assert (
            f"guessed for '{file}': path_column 'image_id', label_column 'dx', image_folder 'images'. Change it by "
            "--data.source.path_column VALUE." in caplog.text
        )
        assert "no split column: 20 % of each class are held out as test images (--data.split)" in caplog.text

    def test_aptos_and_cassava(self, tmp_path: Path) -> None:
        text = "id_code,diagnosis\n" + "\n".join(f"{i:x}a,{i % 3}" for i in range(9))
        aptos = Manifest(write(tmp_path, "train.csv", text, [f"train_images/{i:x}a.png" for i in range(9)]))
        assert (aptos.class_names, aptos.counts) == (["0", "1", "2"], [2, 2, 2])
        assert all(path.endswith("a.png") for path in paths(aptos, "train"))
        text = ",path,class\n" + "\n".join(f"{i},img\\{i}.jpg ,{'rot' if i % 2 else 'ok'}" for i in range(8))
        cassava = Manifest(write(tmp_path, "cassava.csv", text, [f"img/{i}.jpg" for i in range(8)]))
        assert (cassava.class_names, cassava.counts) == (["ok", "rot"], [3, 3])
        assert paths(cassava, "test")[0].startswith("img/")

    def test_nih(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        cells = ["Hernia|Edema", "Edema", "No Finding", "Edema|Hernia", "No Finding", "Edema"]
        rows = [f"{i:08}.png,{cell},0,58,M," for i, cell in enumerate(cells)]
        text = "\n".join(["Image Index,Finding Labels,Follow-up #,Patient Age,Patient Gender,", *rows])
        source = Manifest(write(tmp_path, "Data_Entry.csv", text, [f"images/{i:08}.png" for i in range(6)]))
        assert source.multi_label
        assert source.class_names == ["Edema", "Hernia", "No Finding"]
        assert (source.counts, source.labels("test").sum(0).tolist()) == ([2, 1, 1], [2, 1, 1])
        assert "path_column 'Image Index'" in caplog.text
        assert "separator '|'" in caplog.text

    def test_covid_chestxray(self, tmp_path: Path) -> None:
        rows = [f'{i},{i},M,{"Tuberculosis" if i % 3 else "Pneumonia/Viral"},images,{i}.jpg,"a, b"' for i in range(9)]
        text = "\n".join(["patientid,offset,sex,finding,folder,filename,clinical_notes", *rows])
        source = Manifest(write(tmp_path, "metadata.csv", text, [f"images/{i}.jpg" for i in range(9)]))
        assert (source.class_names, source.counts) == (["Pneumonia/Viral", "Tuberculosis"], [2, 5])

    def test_chexpert(self, tmp_path: Path) -> None:
        text = "Path,Sex,Age,Edema,Hernia\na/1.jpg,Male,1,1.0,\na/2.jpg,Female,2,,1.0\na/3.jpg,Male,3,-1.0,0.0\n"
        text += "a/4.jpg,Male,3,1.0,1.0\n"
        file = write(tmp_path, "train.csv", text, [f"a/{i}.jpg" for i in range(1, 5)])
        with pytest.raises(
            ValueError, match=r"'Sex' .* has 'Male' in row 1, .* by --data.source.label_columns '\[Edema, Hernia\]'"
        ):
            Manifest(file)
        labels = {}
        for blank in ("no", "unknown"):
            source = Manifest(file, label_columns=["edema", "Hernia"], blank=blank)
            rows = zip(
                *[
                    (paths(source, s)[i], source.labels(s)[i].tolist())
                    for s in ("train", "test")
                    for i in range(len(source.labels(s)))
                ],
                strict=True,
            )
            labels[blank] = dict(zip(*rows, strict=True))
        assert labels["no"] == {"a/1.jpg": [1, 0], "a/2.jpg": [0, 1], "a/3.jpg": [-1, 0], "a/4.jpg": [1, 1]}
        assert labels["unknown"] == {"a/1.jpg": [1, -1], "a/2.jpg": [-1, 1], "a/3.jpg": [-1, 0], "a/4.jpg": [1, 1]}


class TestOptions:
    def test_columns_are_named_without_regard_to_case(self, tmp_path: Path) -> None:
        text = "Photo;Kind;Part;path\n x ;01;Training;1\n y;1;train;2\nz;01;valid;3\n"
        file = write(tmp_path, "t.csv", text, [f"pics/{name}.tar.png" for name in "xyz"])
        options = {"path_column": "photo", "label_column": "KIND", "split_column": "part"}
        source = Manifest(file, **options, image_folder="pics", extension="tar.png")
        assert source.class_names == ["01", "1"]
        assert paths(source, "train") == ["x.tar.png", "y.tar.png"]
        assert source.folder == tmp_path / "pics"
        with pytest.raises(ValueError, match=r"label_column names 'kid', but .* Did you mean 'Kind'\?"):
            Manifest(file, **(options | {"label_column": "kid"}))
        with pytest.raises(ValueError, match="image_folder is 'pic', but there is no such folder"):
            Manifest(file, **options, image_folder="pic")

    def test_on_the_command_line(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file = write(tmp_path, "t.csv", "f,a,b\n1,1,\n2,,1\n3,1,\n4,,1\n5,1,1\n6,,\n", [])
        words = [f"--data.source.{option}" for option in ("path_column=f", "blank=no", "extension=png")]
        with pytest.raises(SystemExit):
            main(["inspect", "--data.source=Manifest", *words, f"--data.root={file}", "--data.image_size=8"])
        assert "2 classes" in capsys.readouterr().out


class TestTask:
    def test_exclusive_columns_are_one_label(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level("INFO", "lightning.pytorch")
        rows = [f"{i}_jpg.rf.{i}.jpg, {i % 3 // 2}, {i % 3 // 1 % 2}, {int(i % 3 == 0)}" for i in range(12)]
        file = write(tmp_path, "_classes.csv", "\n".join(["filename, owl, dog, cat", *rows]), [])
        source = Manifest(file)
        assert (source.multi_label, source.class_names, source.counts) == (False, ["owl", "dog", "cat"], [3, 3, 3])
        line = "each of 12 rows of '\\S+' has exactly one 1 in 3 columns, 'owl', 'dog', 'cat'. For several labels: "
        assert re.search(f"one label an image: {line}--data.task several", caplog.text)
        several = Manifest(file, task="several")
        assert (several.multi_label, several.counts) == (True, [3, 3, 3])
        (tmp_path / "t.csv").write_text((tmp_path / "_classes.csv").read_text() + "\nz.jpg,1,1,0\ny.jpg,0,0,0\n")
        assert Manifest(str(tmp_path / "t.csv")).multi_label
        with pytest.raises(ValueError, match=r"task is one, but 2 of 14 .* labels: row 13 has 2, row 14 has 0"):
            Manifest(str(tmp_path / "t.csv"), task="one")

    def test_isic_2019(self, tmp_path: Path) -> None:
        rows = [f"ISIC_{i},{float(i % 2)},{float(1 - i % 2)},0.0" for i in range(9)]
        file = write(tmp_path, "truth.csv", "\n".join(["image,MEL,NV,UNK", *rows]), [f"ISIC_{i}.jpg" for i in range(9)])
        with pytest.raises(ValueError, match="no training image of 'UNK'"):
            Manifest(file)
        source = Manifest(file, label_columns=["MEL", "NV"])
        assert (source.multi_label, source.counts) == (False, [3, 4])
        assert all(path.endswith(".jpg") for path in paths(source, "train"))

    @pytest.mark.parametrize("header", ["is_male,cat,dog,owl", "cat,dog,owl,is_male"])
    def test_a_column_that_is_not_exclusive_raises(self, tmp_path: Path, header: str) -> None:
        classes = "".join("100" if i % 3 == 0 else "010" if i % 3 == 1 else "001" for i in range(9))
        cells = [",".join(classes[3 * i : 3 * i + 3]) for i in range(9)]
        males = ["1" if i in (0, 6) else "0" for i in range(9)]
        pairs = zip(males, cells, strict=True)
        joined = [f"{a},{b}" if header.startswith("is") else f"{b},{a}" for a, b in pairs]
        rows = [f"{i}.png,{'train' if i < 6 else 'test'},{cell}" for i, cell in enumerate(joined)]
        file = write(tmp_path, "t.csv", "\n".join([f"path,split,{header}", *rows]), [])
        with pytest.raises(ValueError, match=r"not exclusive with the others, .*: 'is_male'\. .*'\[cat, dog, owl\]'"):
            Manifest(file)
        assert not Manifest(file, label_columns=["cat", "dog", "owl"]).multi_label
        assert len(Manifest(file, task="several").class_names) == 4

    def test_rows_that_contradict_raise(self, tmp_path: Path) -> None:
        file = write(tmp_path, "t.csv", "path,label,split\na,Cat,train\n./a,Animal,train\nb,Dog,test\n", [])
        with pytest.raises(ValueError, match=r"than one label: 'a' in rows 1 \(Cat\) and 2 \(Animal\): corr"):
            Manifest(file)
        file = write(tmp_path, "t.csv", "path,labels,split\na,Cat,train\nb,Dog,train\na,Cat,val\n", [])
        with pytest.raises(ValueError, match=r"more than one split: 'a' in rows 1 \(train\) and 3 \(val\): keep"):
            Manifest(file)

    def test_labels_without_a_known_negative_warn(self, tmp_path: Path) -> None:
        text = "path,split,Edema,Hernia\n0,train,1.0,\n1,train,,1.0\n2,train,,\n3,test,1.0,\n4,test,,1.0\n5,test,,\n"
        file = write(tmp_path, "t.csv", text, [])
        with pytest.warns(UserWarning, match="no test image that is known to be without 'Edema', 'Hernia': average"):
            Manifest(file)
        assert Manifest(file, blank=False).labels("test").tolist() == [[1, 0], [0, 1], [0, 0]]
        targets = torch.tensor([[1, 1], [-1, 0]])
        assert average_precision(torch.rand(2, 2), targets).isnan().tolist() == [True, False]
