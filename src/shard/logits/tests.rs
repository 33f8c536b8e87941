use super::*;
use crate::base::Quiet;
use crate::shard::TokenStream;

const VOCAB: usize = 300;
const K: usize = 3;

fn header(temperature: f64) -> Header {
    let (tokenizer, shards) = (Digest::of(b"tokenizer"), Digest::of(b"shards"));
    Header { tokenizer, shards, vocab_size: VOCAB, temperature, top_k: K, context: 8 }
}

/// `n` positions: token `i`, the ids after it, probabilities that sum to 0.875.
fn row(i: usize) -> (u32, [u32; K], [f32; K]) {
    let id = |j: usize| ((i * 7 + j) % VOCAB) as u32;
    (id(0), [id(1), id(2), id(3)], [0.5, 0.25, 0.125])
}

fn written(folder: &Path, n: usize, limit: u64) -> Vec<(String, PathBuf)> {
    let mut writer = LogitsWriter::new(folder, header(2.0), limit);
    for (token, ids, probabilities) in (0..n).map(row) {
        writer.push(token, &ids, &probabilities).unwrap();
    }
    let rest = writer.finish().unwrap().unwrap();
    assert!((rest - 0.125).abs() < 1e-6, "{rest}");
    files(folder)
}

fn files(folder: &Path) -> Vec<(String, PathBuf)> {
    let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_string();
    fs::files_below(folder).unwrap().into_iter().map(|path| (name(&path), path)).collect()
}

fn stream(n: usize) -> TokenStream {
    let mut stream = TokenStream::new(VOCAB);
    stream.push(&(0..n).map(|i| row(i).0).collect::<Vec<_>>());
    stream
}

fn table(files: &[(String, PathBuf)], stream: &TokenStream) -> Result<Table> {
    let scratch = tempfile::tempdir().unwrap();
    // The open file outlives its name.
    Table::new(&Logits::open(files)?, stream, scratch.path(), &Quiet)
}

#[test]
fn what_was_written_is_read_by_position() {
    let folder = tempfile::tempdir().unwrap();
    let files = written(folder.path(), 25, 10);
    assert_eq!(files.len(), 3);
    let logits = Logits::open(&files).unwrap();
    assert_eq!((logits.positions, &logits.header), (25, &header(2.0)));
    let mut table = table(&files, &stream(25)).unwrap();
    let (mut ids, mut probabilities) = ([0; 2 * K], [0.0; 2 * K]);
    for first in [19, 0, 23, 9] {
        table.read(first..first + 2, &mut ids, &mut probabilities).unwrap();
        assert_eq!(ids.to_vec(), [row(first).1, row(first + 1).1].concat());
        let expected: Vec<f32> = [0.5, 0.25, 0.125].map(|p| probability(log_prob(p))).repeat(2);
        assert_eq!(probabilities.to_vec(), expected);
    }
}

#[test]
fn a_probability_is_stored_to_about_the_last_bit_and_never_as_0() {
    for p in [1.0, 0.7, 1e-3, 1e-20] {
        let back = probability(log_prob(p));
        assert!((back / p - 1.0).abs() < 4e-6, "{p} became {back}");
    }
    assert!(log_prob(0.0).is_finite() && probability(log_prob(1.0)) == 1.0);
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let all = written(folder.path(), 25, 10);
    let fails = |files: &[(String, PathBuf)], stream: &TokenStream| {
        table(files, stream).err().expect("an error").to_string()
    };
    let longer = fails(&all, &stream(26));
    assert!(longer.contains("25 positions, the shards 26 tokens"), "{longer}");
    let mut other = TokenStream::new(VOCAB);
    other.push(&(0..25).map(|i| if i == 13 { 99 } else { row(i).0 }).collect::<Vec<_>>());
    let error = fails(&all, &other);
    assert!(
        error.contains("`logits-00001.parquet`, row 3: the token is 91, that of the shards 99"),
        "{error}"
    );
    let missing = fails(&[all[0].clone(), all[2].clone()], &stream(25));
    assert!(missing.contains("`logits-00001.parquet` is missing"), "{missing}");
    assert!(fails(&[], &stream(25)).contains("no `logits-00000.parquet`"));

    let hotter = tempfile::tempdir().unwrap();
    LogitsWriter::new(hotter.path(), header(3.0), 10).push(0, &[1, 2, 3], &[0.1; K]).unwrap();
    let mut writer = LogitsWriter::new(hotter.path(), header(3.0), 10);
    writer.push(0, &[1, 2, 3], &[0.1; K]).unwrap();
    writer.finish().unwrap();
    let mixed = [all[0].clone(), ("logits-00001.parquet".into(), files(hotter.path())[0].1.clone())];
    assert!(fails(&mixed, &stream(11)).contains("their footers differ"));

    let error = LogitsWriter::new(hotter.path(), header(3.0), 10).push(0, &[1, 2, 3], &[f32::NAN; K]);
    assert!(error.unwrap_err().to_string().contains("position 0 is NaN"));
}

#[test]
fn rows_that_are_no_distribution_are_refused() {
    for (ids, probabilities, why) in [
        ([1, 2, 1], [0.5, 0.25, 0.125], "the id 1 stands twice"),
        ([1, 2, 300], [0.5, 0.25, 0.125], "the id 300 is beyond the vocabulary of 300"),
        ([1, 2, 3], [0.5, 0.5, 0.25], "its probabilities sum to 1.25"),
        ([1, 2, 3], [1.5, 0.1, 0.1], "expected log-probabilities, found 0.4"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = LogitsWriter::new(folder.path(), header(2.0), 10);
        writer.push(row(0).0, &row(0).1, &row(0).2).unwrap();
        writer.push(row(1).0, &ids, &probabilities).unwrap();
        writer.finish().unwrap();
        let error = table(&files(folder.path()), &stream(2)).err().unwrap().to_string();
        assert!(error.contains("`logits-00000.parquet`, row 1") && error.contains(why), "{error}");
    }
}

#[test]
fn a_damaged_file_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let all = written(folder.path(), 25, 100);
    let whole = fs::read(&all[0].1).unwrap();
    let mut refused = 0;
    for at in (4..whole.len()).step_by(7) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x5a;
        fs::write(&all[0].1, &bytes).unwrap();
        // A flipped bit may change nothing that is read; what is refused is named.
        if let Err(error) = table(&all, &stream(25)) {
            assert!(error.to_string().contains("logits-00000.parquet"), "{at}: {error}");
            refused += 1;
        }
    }
    assert!(refused > 20, "{refused}");
    fs::write(&all[0].1, &whole[..whole.len() / 2]).unwrap();
    assert!(table(&all, &stream(25)).err().unwrap().to_string().contains("`logits-00000.parquet`"));
}
