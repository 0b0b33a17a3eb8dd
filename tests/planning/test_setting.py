import json

from planned import planned_model, run

from multicoco.engine.ds_config import ModelShape, resolve_ds_config
from multicoco.planning.setting import ds_config, overrides, settings


def test_every_setting_keeps_the_global_batch_and_is_a_valid_ds_config(tmp_path):
    config, shape = run(), ModelShape(32, 10**6, 10**6, 3)
    found = list(settings(config, planned_model(config), ranks=4))
    assert {setting.stage for setting in found} == {0, 1, 2, 3}
    assert {setting.offload for setting in found} == {"none", "optimizer", "all"}
    assert {setting.micro_batch for setting in found} == {1, 2, 4}
    for setting in found:
        path = tmp_path / "ds_config.json"
        path.write_text(json.dumps(ds_config(setting)))
        trained = config.model_copy(update=overrides(setting))
        resolved = resolve_ds_config(path, trained, 4, shape)
        assert resolved["train_batch_size"] == 4 * 3 * 4
        assert resolved["zero_optimization"]["stage"] == setting.stage
