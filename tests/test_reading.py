"""Tables as people have them: how they are written, what their columns are called, and what task they are."""

from pathlib import Path

import pytest

from lt_cb.data.sources.reading import read_csv, read_table

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
