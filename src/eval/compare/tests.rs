use super::*;

/// A document whose nats differ between models.
fn document(model: usize, i: usize) -> Item {
    let (bytes, nats) = (40 + i as u64, 20.0 + ((i * (model + 3)) % 7) as f64 + 0.5 * model as f64);
    let item = Item::scored(Task::Documents, "a.txt", format!("{i:x}"), 0.0);
    Item { tokens: 10, bytes, nats, top1: (i % 4) as u64, top5: 5, ..item }
}

fn member(model: usize, items: usize) -> Member {
    let items = (0..items).map(|i| document(model, i)).collect();
    Member { name: format!("m{model}"), items, settings: Settings::default() }
}

fn entry(name: &str, members: Vec<Member>) -> Entry {
    Entry { name: name.into(), members }
}

fn pair(i: usize, score: f64) -> Item {
    Item::scored(Task::Pairs, "wh", format!("wh/{i}"), score)
}

fn of_pairs(name: &str, scores: &[f64]) -> Entry {
    let items = scores.iter().enumerate().map(|(i, score)| pair(i, *score)).collect();
    entry(name, vec![Member { name: name.into(), items, settings: Settings::default() }])
}

fn named<'a>(comparison: &'a Comparison, figure: &str) -> &'a Compared {
    comparison.figures.iter().find(|f| f.figure == figure).unwrap()
}

fn near(found: Option<[f64; 2]>, expected: [f64; 2]) {
    let found = found.unwrap();
    let off = (0..2).map(|i| (found[i] - expected[i]).abs()).fold(0.0, f64::max);
    assert!(off < 1e-12, "{found:?}, not {expected:?}");
}

#[test]
fn groups_are_resampled_by_item_and_member_as_numpy_does_it() {
    let entries =
        [entry("one", vec![member(0, 12)]), entry("three", (1..4).map(|m| member(m, 12)).collect())];
    let options = Options { seed: 42, figures: vec!["bits_per_byte".into()], ..Options::default() };
    let comparison = compare(&entries, &options).unwrap();
    let figure = named(&comparison, "bits_per_byte");
    let [one, three] = figure.rows.as_slice() else { panic!("{figure:?}") };
    assert!((one.value - VALUES[0]).abs() < 1e-12 && (three.value - VALUES[1]).abs() < 1e-12);
    let mean = three.members.iter().map(|m| m.value).sum::<f64>() / 3.0;
    assert!((three.value - mean).abs() < 1e-12 && three.members[2].name == "m3");
    near(one.interval, INTERVALS[0]);
    near(three.interval, INTERVALS[1]);
    let [difference] = figure.differences.as_slice() else { panic!("{figure:?}") };
    assert!((difference.value - (VALUES[1] - VALUES[0])).abs() < 1e-12);
    near(difference.interval, INTERVALS[2]);
    assert_eq!((difference.p, difference.p_holm, difference.p_members), (P, P, None));
    assert_eq!((one.best, three.best), (true, false), "fewer bits");
}
const VALUES: [f64; 2] = [0.7319167148832288, 0.760981999589783];
const INTERVALS: [[f64; 2]; 3] = [
    [0.6912368253987049, 0.7768357912479035],
    [0.7158150615856155, 0.8095569937700949],
    [-0.017850450266443652, 0.06920387636658137],
];
const P: f64 = 0.1692;

#[test]
fn known_differences_are_found_and_ties_share_the_mark() {
    let base: Vec<f64> = (0..200).map(|i| f64::from(i % 2 == 0)).collect();
    let better: Vec<f64> = (0..200).map(|i| f64::from(i % 2 == 0 || i % 5 == 0)).collect();
    let entries = [of_pairs("base", &base), of_pairs("better", &better), of_pairs("same", &base)];
    let comparison = compare(&entries, &Options::default()).unwrap();
    let figure = named(&comparison, "pairs.accuracy");
    let [better, same] = figure.differences.as_slice() else { panic!("{figure:?}") };
    assert!((better.value - 0.1).abs() < 1e-12);
    let [low, high] = better.interval.unwrap();
    assert!(0.05 < low && low < 0.1 && 0.1 < high && high < 0.15, "{low} to {high}");
    assert_eq!((better.p, better.p_holm), (1e-4, 2e-4), "2^-20 is below what 9999 permutations can tell");
    assert_eq!((same.value, same.interval, same.p, same.p_holm), (0.0, Some([0.0, 0.0]), 1.0, 1.0));
    assert_eq!(figure.rows.iter().map(|row| row.best).collect::<Vec<_>>(), [false, true, false]);

    let options = Options { baseline: Some("better".into()), ..Options::default() };
    let turned = compare(&entries, &options).unwrap();
    let differences = &named(&turned, "pairs.accuracy").differences;
    assert_eq!(differences.iter().map(|d| d.name.as_str()).collect::<Vec<_>>(), ["base", "same"]);
    assert!(differences.iter().all(|d| (d.value + 0.1).abs() < 1e-12));
    let tied = compare(&[entries[0].clone(), entries[2].clone()], &Options::default()).unwrap();
    assert!(named(&tied, "pairs.accuracy").rows.iter().all(|row| row.best));
}

#[test]
fn only_items_that_all_have_count_and_the_others_are_told() {
    let (mut a, mut b) = (member(0, 12), member(1, 10));
    // The same text twice: the first of `b` meets the first of `a`.
    a.items.push(Item { nats: 1.0, ..a.items[3].clone() });
    a.items.push(pair(1, 1.0));
    b.items.reverse();
    let entries = [entry("a", vec![a.clone()]), entry("b", vec![b.clone()])];
    let comparison = compare(&entries, &Options::default()).unwrap();
    let left_out = BTreeMap::from([("m0".to_string(), 3)]);
    assert_eq!(comparison.tasks, [TaskItems { task: Task::Documents, items: 10, left_out }]);
    let expected =
        compare(&[entry("a", vec![member(0, 10)]), entry("b", vec![member(1, 10)])], &Options::default());
    assert_eq!(comparison.figures, expected.unwrap().figures, "whatever the order of the second");
    assert_eq!(comparison.not_compared["pairs.accuracy"], "`m1` has no items of the task `pairs`");

    b.items.iter_mut().for_each(|item| item.id.push('x'));
    let error = compare(&[entry("a", vec![a]), entry("b", vec![b])], &Options::default()).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("no item of the task `documents` is in all reports") && text.contains("same texts")
    );
}

#[test]
fn figures_per_token_are_left_out_where_tokenizers_differ() {
    let not_compared = |change: &dyn Fn(&mut Member)| {
        let mut other = member(1, 12);
        change(&mut other);
        let mut first = member(0, 12);
        first.settings.vocab_size = Some(500);
        let entries = [entry("a", vec![first]), entry("b", vec![other])];
        let comparison = compare(&entries, &Options::default()).unwrap();
        assert!(comparison.figures.iter().any(|f| f.figure == "bits_per_byte"));
        comparison.not_compared
    };
    let per_token = ["loss", "top1_accuracy", "top5_accuracy"];
    for change in
        [(&|other: &mut Member| other.items[4].tokens = 11) as &dyn Fn(&mut Member), &|other: &mut Member| {
            other.settings.vocab_size = Some(501)
        }]
    {
        let found = not_compared(change);
        assert!(found.keys().eq(per_token.iter()), "{found:?}");
        assert!(found["loss"].contains("compare bits per byte"));
    }
    assert!(not_compared(&|other| other.settings.vocab_size = Some(500)).is_empty());

    let mut other = member(1, 12);
    other.items[0].bytes += 1;
    let entries = [entry("a", vec![member(0, 12)]), entry("b", vec![other])];
    let comparison = compare(&entries, &Options::default()).unwrap();
    assert!(comparison.not_compared["bits_per_byte"].contains("different bytes"));
}

#[test]
fn other_settings_are_told() {
    let mut other = member(1, 12);
    let mut first = member(0, 12);
    (first.settings.context, other.settings.context) = (Some(128), Some(64));
    (first.settings.stride, other.settings.stride) = (Some(64), None);
    let entries = [entry("a", vec![first]), entry("b", vec![other])];
    let notes = compare(&entries, &Options::default()).unwrap().notes;
    assert_eq!(notes, ["the models were scored with different settings: context 64, 128 tokens"]);
}

#[test]
fn one_entry_has_figures_and_no_differences() {
    let comparison = compare(&[of_pairs("only", &[1.0])], &Options::default()).unwrap();
    let figure = named(&comparison, "pairs.accuracy");
    assert!(figure.differences.is_empty());
    let row = &figure.rows[0];
    assert_eq!((row.value, row.interval, row.best), (1.0, None, false), "of one item");
}

#[test]
fn wrong_options_are_refused_with_the_way_out() {
    let entries = [of_pairs("a", &[1.0, 0.0]), of_pairs("b", &[1.0, 1.0])];
    let error = |entries: &[Entry], options| compare(entries, &options).unwrap_err().to_string();
    let twice = error(&[entries[0].clone(), entries[0].clone()], Options::default());
    assert!(twice.contains("two rows of the table are called `a`") && twice.contains("NAME=TARGET"));
    let baseline = error(&entries, Options { baseline: Some("c".into()), ..Options::default() });
    assert!(baseline.contains("`c`") && baseline.contains("the rows are `a`, `b`"), "{baseline}");
    let figure = error(&entries, Options { figures: vec!["bits_per_bite".into()], ..Options::default() });
    assert!(figure.contains("did you mean `bits_per_byte`"), "{figure}");
    let other = error(&entries, Options { figures: vec!["loss".into()], ..Options::default() });
    assert!(other.contains("no figure of `a`, `b` can be compared: they have no items"), "{other}");
}

#[test]
fn the_table_has_all_in_parquet() {
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
    let entries = [of_pairs("a", &[1.0, 0.0, 1.0]), of_pairs("b", &[1.0, 1.0, 0.5])];
    let comparison = compare(&entries, &Options::default()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("table.parquet");
    write_table(&path, &comparison).unwrap();
    let file = crate::base::fs::open(&path).unwrap();
    let batch =
        ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap().next().unwrap().unwrap();
    let json = |row: usize| {
        let mut out = Vec::new();
        let writer = arrow::json::WriterBuilder::new().with_explicit_nulls(true);
        let mut writer = writer.build::<_, arrow::json::writer::LineDelimited>(&mut out);
        writer.write(&batch.slice(row, 1)).unwrap();
        drop(writer);
        serde_json::from_slice::<serde_json::Value>(&out).unwrap()
    };
    let (first, second) = (json(0), json(1));
    assert_eq!(batch.num_rows(), 2);
    assert_eq!((&first["name"], &first["difference"], &first["p"]), (&"a".into(), &().into(), &().into()));
    let row = &named(&comparison, "pairs.accuracy").rows[1];
    let difference = &named(&comparison, "pairs.accuracy").differences[0];
    assert_eq!((&second["name"], &second["baseline"]), (&"b".into(), &"a".into()));
    assert_eq!((&second["value"], &second["low"]), (&row.value.into(), &row.interval.unwrap()[0].into()));
    assert_eq!((&second["difference"], &second["p"]), (&difference.value.into(), &difference.p.into()));
    assert_eq!((&second["best"], &second["members"]), (&true.into(), &1.into()));
}
