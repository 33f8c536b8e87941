use super::*;

fn fingerprint(n: u64) -> Fingerprint {
    Fingerprint {
        kind: "k".into(),
        kind_version: 1,
        value_versions: BTreeMap::new(),
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
        reason: Some(Reason::NeverRan),
        seconds: 0.0,
        run: "r".into(),
        measurements: Vec::new(),
    }
}

/// Commits one file `a.txt` with `content` as output `out`.
pub(super) fn commit(store: &Store, n: u64, content: &str) -> Action {
    let scratch = store.scratch().unwrap();
    let folder = scratch.path().join("out");
    fs::write(&folder.join("a.txt"), content.as_bytes()).unwrap();
    store.commit(action(n), &BTreeMap::from([("out".to_string(), ("file".to_string(), folder))])).unwrap()
}

/// Other bytes for a file that may be read-only.
fn rewrite(path: &Path, bytes: &[u8]) {
    fs::remove(path).unwrap();
    fs::write(path, bytes).unwrap();
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
    drop(store);
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
    rewrite(&blob, b"jello");
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
    rewrite(&record, text.replace("\"n\": 1", "\"n\": 7").as_bytes());
    assert_eq!(store.action(&fingerprint(1).key()), None);
    // What another version had as its reason says nothing about the bytes.
    rewrite(&record, text.replace("\"never_ran\"", "{ \"full_moon\": 3 }").as_bytes());
    assert_eq!(store.action(&fingerprint(1).key()), Some(Action { reason: None, ..made.clone() }));
    rewrite(&record, b"{");
    assert_eq!(store.action(&fingerprint(1).key()), None);
    assert!(store.damaged_record(&fingerprint(1).key()).unwrap().contains("does not read"));
    assert_eq!(store.damaged_record(&fingerprint(2).key()), None);
    let manifest = store.json("manifests", &made.outputs["out"].hex());
    rewrite(&manifest, b"{}");
    assert!(matches!(store.damage(&made.outputs["out"]), Some(Damage::Damaged { .. })));
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
    // An output that the stage no longer has.
    store.show("p", "s", "step-5", &one).unwrap();
    store.hide_others("p", "s", &BTreeMap::from([("out".to_string(), two)]));
    assert!(shown.exists() && !dir.path().join("p/s/step-5").exists());
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
fn other_bytes_behind_the_same_size_and_mtime_are_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(10);
    let write = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(old).unwrap();
    };
    write(b"one");
    // Longer than a tick of the file system's clock, so that its stat counts.
    std::thread::sleep(std::time::Duration::from_millis(50));
    let store = Store::open(dir.path(), false);
    assert_eq!(store.digest_of(&path).unwrap(), Digest::of(b"one"));
    store.save().unwrap();
    let knows = |paranoid| Store::open(dir.path(), paranoid).knows(&path, &fs::stat(&path).unwrap());
    assert_eq!((knows(false), knows(true)), (true, false));
    write(b"two");
    assert!(cfg!(not(unix)) || !knows(false));
    assert_eq!(Store::open(dir.path(), true).digest_of(&path).unwrap(), Digest::of(b"two"));
}

#[test]
fn what_two_processes_learn_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let files = ["a", "b"].map(|name| dir.path().join(name));
    files.iter().for_each(|path| fs::write(path, b"x").unwrap());
    std::thread::sleep(std::time::Duration::from_millis(50));
    let stores = [Store::open(dir.path(), false), Store::open(dir.path(), false)];
    for (store, path) in stores.iter().zip(&files) {
        store.digest_of(path).unwrap();
    }
    stores.iter().for_each(|store| store.save().unwrap());
    let store = Store::open(dir.path(), false);
    assert!(files.iter().all(|path| store.knows(path, &fs::stat(path).unwrap())));
}

#[test]
fn a_blob_stays_known_when_the_view_links_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), false);
    let out = commit(&store, 1, "hello").outputs["out"];
    store.show("p", "s", "out", &out).unwrap();
    let blob = store.artifact("s", &out).unwrap().files[0].path.clone();
    assert!(store.knows(&blob, &fs::stat(&blob).unwrap()));
}

#[test]
fn a_blob_that_was_changed_is_moved_out_of_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), false);
    let out = commit(&store, 1, "hello").outputs["out"];
    let file = store.artifact("s", &out).unwrap().files[0].clone();
    assert_eq!(store.quarantine_if_damaged(&file).unwrap(), None);
    fs::remove(&file.path).unwrap();
    fs::write(&file.path, b"jello").unwrap();
    let moved = store.quarantine_if_damaged(&file).unwrap().unwrap();
    assert_eq!(fs::read(&moved).unwrap(), b"jello");
    assert_eq!(store.damage(&out), Some(Damage::Missing { file: "a.txt".into() }));
    // What is not the store's is not touched.
    let foreign = ArtifactFile { path: moved.clone(), ..file };
    assert_eq!(store.quarantine_if_damaged(&foreign).unwrap(), None);
    assert!(moved.exists());
}

#[test]
fn a_view_that_was_edited_is_remade() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), false);
    let out = commit(&store, 1, "hello").outputs["out"];
    store.show("p", "s", "out", &out).unwrap();
    let shown = dir.path().join("p/s/out/a.txt");
    // A copy with the same content, as on a file system without links, counts.
    fs::remove(&shown).unwrap();
    fs::write(&shown, b"hello").unwrap();
    let inode = fs::stat(&shown).unwrap().inode;
    store.show("p", "s", "out", &out).unwrap();
    assert_eq!(fs::stat(&shown).unwrap().inode, inode);
    fs::write(&shown, b"jello").unwrap();
    store.show("p", "s", "out", &out).unwrap();
    assert_eq!(fs::read(&shown).unwrap(), b"hello");
}
