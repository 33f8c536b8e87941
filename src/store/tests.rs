use super::*;

fn fingerprint(n: u64) -> Fingerprint {
    Fingerprint {
        kind: "k".into(),
        kind_version: 1,
        params: serde_json::json!({ "n": n }),
        inputs: BTreeMap::new(),
        outputs: BTreeMap::new(),
        seed: None,
    }
}

fn action(n: u64) -> Action {
    Action {
        version: VERSION,
        fingerprint: fingerprint(n),
        outputs: BTreeMap::new(),
        reason: serde_json::Value::Null,
        seconds: 0.0,
        run: "r".into(),
        measurements: Vec::new(),
    }
}

/// Commits one file `a.txt` with `content` as output `out`.
fn commit(store: &Store, n: u64, content: &str) -> Action {
    let scratch = store.scratch().unwrap();
    let folder = scratch.path().join("out");
    fs::write(&folder.join("a.txt"), content.as_bytes()).unwrap();
    store.commit(action(n), &BTreeMap::from([("out".to_string(), ("file".to_string(), folder))])).unwrap()
}

#[test]
fn a_commit_is_a_hit_with_its_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), false);
    let made = commit(&store, 1, "hello");
    assert_eq!(store.action(&fingerprint(1).key()), Some(made.clone()));
    assert_eq!(store.action(&fingerprint(2).key()), None);
    let artifact = store.artifact("s", &made.outputs["out"]).unwrap();
    assert_eq!(fs::read(artifact.file("a.txt").unwrap()).unwrap(), b"hello");
    assert_eq!(store.damage(&made.outputs["out"]), None);
    assert_eq!(fs::children(&dir.path().join("store/tmp")).unwrap(), Vec::<PathBuf>::new());
}

#[test]
fn a_blob_that_is_gone_or_changed_is_damage_and_a_new_commit_mends_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), false);
    let made = commit(&store, 1, "hello");
    let out = made.outputs["out"];
    let blob = store.artifact("s", &out).unwrap().files[0].path.clone();
    fs::remove(&blob).unwrap();
    assert_eq!(store.damage(&out), Some(Damage::Missing { file: "a.txt".into() }));
    commit(&store, 1, "hello");
    assert_eq!(store.damage(&out), None);
    // The same length, so that only the content can tell.
    fs::write_atomic(&blob, b"jello").unwrap();
    assert_eq!(store.damage(&out), Some(Damage::Damaged { file: "a.txt".into() }));
    commit(&store, 1, "hello");
    assert_eq!(store.damage(&out), None);
}

#[test]
fn records_that_do_not_read_or_lie_count_as_absent() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), false);
    let made = commit(&store, 1, "hello");
    let record = store.json("actions", &fingerprint(1).key().hex());
    let text = String::from_utf8(fs::read(&record).unwrap()).unwrap();
    fs::write_atomic(&record, text.replace("\"n\": 1", "\"n\": 7").as_bytes()).unwrap();
    assert_eq!(store.action(&fingerprint(1).key()), None);
    fs::write_atomic(&record, b"{").unwrap();
    assert_eq!(store.action(&fingerprint(1).key()), None);
    let manifest = store.json("manifests", &made.outputs["out"].hex());
    fs::write_atomic(&manifest, b"{}").unwrap();
    assert!(matches!(store.damage(&made.outputs["out"]), Some(Damage::Missing { .. })));
}

#[test]
fn an_empty_output_is_refused_and_leaves_no_record() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), false);
    let folder = dir.path().join("empty");
    fs::create_dir(&folder).unwrap();
    let result =
        store.commit(action(1), &BTreeMap::from([("out".to_string(), ("file".to_string(), folder))]));
    assert!(result.unwrap_err().message().contains("wrote nothing"));
    assert_eq!(store.action(&fingerprint(1).key()), None);
}

#[test]
fn history_keeps_the_newest_last_and_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), false);
    for n in 0..40 {
        store.remember("p", "s", &fingerprint(n).key()).unwrap();
    }
    store.remember("p", "s", &fingerprint(20).key()).unwrap();
    let keys = store.history("p", "s");
    assert_eq!((keys.len(), keys.last()), (HISTORY, Some(&fingerprint(20).key())));
    assert_eq!(keys.iter().filter(|k| **k == fingerprint(20).key()).count(), 1);
}

#[test]
fn the_view_shows_the_artifact_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), false);
    let (one, two) = (commit(&store, 1, "one").outputs["out"], commit(&store, 2, "two").outputs["out"]);
    let shown = dir.path().join("p/s/out/a.txt");
    store.show("p", "s", "out", &one).unwrap();
    assert_eq!(fs::read(&shown).unwrap(), b"one");
    fs::write(&dir.path().join("p/s/out/stray"), b"x").unwrap();
    store.show("p", "s", "out", &two).unwrap();
    assert_eq!(fs::read(&shown).unwrap(), b"two");
    assert!(!dir.path().join("p/s/out/stray").exists());
}

#[test]
fn the_key_depends_on_content_not_on_the_order_of_keys() {
    let mut a = fingerprint(1);
    let mut b = fingerprint(1);
    a.params = serde_json::from_str(r#"{"x": 1, "y": {"p": 1, "q": 2}}"#).unwrap();
    b.params = serde_json::from_str(r#"{"y": {"q": 2, "p": 1}, "x": 1}"#).unwrap();
    assert_eq!(a.key(), b.key());
    b.seed = Some(1);
    assert_ne!(a.key(), b.key());
}

#[test]
fn an_unchanged_file_is_not_read_again_and_a_touched_one_keeps_its_digest() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    fs::write(&path, b"one").unwrap();
    // Old enough for its stat to count.
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(10);
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(old).unwrap();
    let store = Store::open(dir.path(), false);
    let first = store.digest_of(&path).unwrap();
    store.save().unwrap();
    // Other bytes behind the same stat: a store that trusts the memo does not notice, a paranoid one does.
    std::fs::write(&path, b"two").unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(old).unwrap();
    assert_eq!(Store::open(dir.path(), false).digest_of(&path).unwrap(), first);
    assert_eq!(Store::open(dir.path(), true).digest_of(&path).unwrap(), Digest::of(b"two"));
}
