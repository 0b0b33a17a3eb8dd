import platform

from multicoco import hardware

CPUINFO = """processor\t: 0
cpu family\t: 26
model\t\t: 2
model name\t: AMD EPYC: of a cloud

processor\t: 1
model name\t: AMD EPYC: of a cloud
"""


def test_the_processor_is_named_with_its_kind_where_linux_tells(tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "_CPUINFO", tmp_path / "cpuinfo")
    assert hardware.processor() == platform.machine()
    (tmp_path / "cpuinfo").write_text(CPUINFO)
    assert hardware.processor() == "AMD EPYC: of a cloud, cpu family 26, model 2"
    (tmp_path / "cpuinfo").write_text("Features\t: fp asimd\n")  # as on ARM
    assert hardware.processor() == platform.machine()
