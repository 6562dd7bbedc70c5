def test_site_that_loses_every_row_is_an_error(tmp_path: Path) -> None:
    rows = many("a")
    with pytest.raises(DataError, match="south"):
        loaded(tmp_path, {"north": rows, "south": rows})


def test_first_site_by_name_keeps_a_shared_text_however_the_file_is_ordered(tmp_path: Path) -> None:
    path = tmp_path / "all.csv"
    lines = [f"{t},{y},{s}" for s in ("south", "north") for t, y in [("both", "yes"), *many(s)]]
    path.write_text("text,label,site\n" + "\n".join(lines))
    data = load_data(DataConfig(file=path, site="site"), seed=0)
    north = [row for part in parts(data.sites["north"]) for row in part]
    assert "both" in texts(data, north)


def test_row_without_a_site_is_named_at_a_single_site_too(tmp_path: Path) -> None:
    path = tmp_path / "all.csv"
    lines = [f"{t},{y},north" for t, y in many("n", 10)]
    path.write_text("text,label,site\n" + "\n".join([*lines, "c,no,"]))
    with pytest.raises(BadValueError, match="names no site") as caught:
        load_data(DataConfig(file=path, site="site"), seed=0)
    assert f"{path}:12" in str(caught.value)
