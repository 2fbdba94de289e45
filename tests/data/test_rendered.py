from chatwright.data.records import Message


def test_collate_pads_either_side_and_counts_real_positions(renderer):
    rows = [renderer.prompt([Message.of("user", text)]) for text in ("dog", "a much longer question, 狗")]
    left, right = renderer.collate(rows, "left"), renderer.collate(rows)
    short = len(rows[0])
    assert left["attention_mask"][0].sum() == right["attention_mask"][0].sum() == short
    assert left["input_ids"][0, -short:].tolist() == right["input_ids"][0, :short].tolist() == rows[0].input_ids
    assert left["position_ids"][0, -short:].tolist() == list(range(short))
