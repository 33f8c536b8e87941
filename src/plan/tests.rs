//! Decisions on made-up pasts: the plan is a pure function, so none of this touches a disk.

use serde_json::json;

use super::*;
use crate::store::ManifestFile;

/// What is known of the past, in memory.
#[derive(Default)]
struct Memory {
    actions: Vec<Action>,
    manifests: Vec<Manifest>,
    damaged: Option<Damage>,
}

impl Records for Memory {
    fn action(&self, key: &Digest) -> Option<Action> {
        self.actions.iter().find(|a| a.fingerprint.key() == *key).cloned()
    }
    fn damage(&self, _: &Digest) -> Option<Damage> {
        self.damaged.clone()
    }
    fn manifest(&self, artifact: &Digest) -> Option<Manifest> {
        self.manifests.iter().find(|m| m.digest() == *artifact).cloned()
    }
    fn history(&self, _: &str, _: &str) -> Vec<Digest> {
        self.actions.iter().map(|a| a.fingerprint.key()).collect()
    }
}

const PIPELINE: &str = "
stages:
  a: { kind: command, outputs: { t: file }, params: { command: [one], env: { X: '1' } } }
";

fn pipeline(text: &str) -> Pipeline {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("p.yaml");
    std::fs::write(&file, text).unwrap();
    crate::spec::load(&file, &crate::kinds::kinds(), &Default::default()).unwrap()
}

fn decision(text: &str, records: &Memory, forced: bool) -> Decision {
    let p = pipeline(text);
    decide(&p, &p.stages[0], &crate::kinds::kinds(), Ok(BTreeMap::new()), records, forced)
}

fn ran(text: &str) -> Memory {
    let fingerprint = decision(text, &Memory::default(), false).fingerprint.unwrap();
    let action = Action {
        version: VERSION,
        fingerprint,
        outputs: BTreeMap::from([("t".to_string(), Digest::of(b"t"))]),
        reason: None,
        seconds: 0.0,
        run: "r".into(),
        measurements: Vec::new(),
    };
    Memory { actions: vec![action], ..Memory::default() }
}

#[test]
fn every_verdict_has_its_reason() {
    let code = |d: &Decision| (d.verdict, d.reason.code());
    assert_eq!(code(&decision(PIPELINE, &Memory::default(), false)), (Verdict::Run, "never_ran"));
    let mut past = ran(PIPELINE);
    assert_eq!(code(&decision(PIPELINE, &past, false)), (Verdict::Cached, "up_to_date"));
    assert_eq!(code(&decision(PIPELINE, &past, true)), (Verdict::Run, "forced"));
    let changed = decision(&PIPELINE.replace("'1'", "'2'"), &past, false);
    assert_eq!(code(&changed), (Verdict::Run, "param"));
    assert_eq!(changed.reason.detail(), "param env.X: \"1\" -> \"2\"");
    past.damaged = Some(Damage::Damaged { file: "t".into() });
    assert_eq!(code(&decision(PIPELINE, &past, false)), (Verdict::Run, "output_damaged"));
}

#[test]
fn a_new_version_of_a_kind_is_a_reason() {
    let mut past = ran(PIPELINE);
    past.actions[0].fingerprint.kind_version = 0;
    let decision = decision(PIPELINE, &past, false);
    assert_eq!(
        (decision.reason.code(), decision.reason.detail().as_str()),
        ("kind_version", "kind version: 0 -> 2")
    );
}

/// The other stages keep their keys, records and states: their fingerprints are written as they were.
#[test]
fn a_new_version_of_a_value_concerns_stages_with_that_value_alone() {
    let kinds = crate::kinds::kinds();
    let with_dtype = kinds.iter().filter(|kind| kind.schema()["properties"].get("dtype").is_some());
    let with_dtype: Vec<&Info> = with_dtype.map(|kind| kind.info()).collect();
    assert_eq!(with_dtype.len(), 5);
    let mut stage = pipeline(PIPELINE).stages.remove(0);
    for info in with_dtype {
        let mut of = |dtype: &str| {
            stage.params = json!({ "dtype": dtype });
            fingerprint(&stage, info, BTreeMap::new())
        };
        let (plain, tiles) = (of("f32"), of("bf16_tile"));
        for same in [&plain, &of("bf16")] {
            assert!(same.value_versions.is_empty() && json!(same).get("value_versions").is_none());
            assert_eq!(same.versions(), format!("{} {}", info.name, info.version));
        }
        assert_eq!(tiles.versions(), format!("{} {}, dtype 2", info.name, info.version));
        let before = Fingerprint { value_versions: BTreeMap::new(), ..tiles.clone() };
        assert!(before.key() != tiles.key() && before.trajectory(&["steps"]) != tiles.trajectory(&["steps"]));
        let details = |old: &Fingerprint, new: &Fingerprint| -> Vec<String> {
            differences(old, new, &Memory::default()).iter().map(Difference::detail).collect()
        };
        assert_eq!(
            details(&before, &tiles),
            ["param dtype: \"bf16_tile\" (version 1) -> \"bf16_tile\" (version 2)"]
        );
        assert_eq!(details(&plain, &tiles), ["param dtype: \"f32\" -> \"bf16_tile\""]);
        let read: Fingerprint = serde_json::from_value(json!(tiles)).unwrap();
        assert_eq!(read, tiles);
    }
}

#[test]
fn the_nearest_earlier_action_is_the_one_that_differs_least() {
    let mut past = ran(PIPELINE);
    past.actions.extend(ran(&PIPELINE.replace("one", "two").replace("'1'", "'2'")).actions);
    // Newer, but further away in both fields.
    let found = decision(&PIPELINE.replace("one", "three"), &past, false);
    assert_eq!(found.reason.detail(), "param command: [\"one\"] -> [\"three\"]");
}

#[test]
fn an_input_that_changed_names_its_files() {
    let manifest = |files: &[(&str, &str)]| {
        let file = |(path, text): &(&str, &str)| ManifestFile {
            path: path.to_string(),
            digest: Digest::of(text.as_bytes()),
            size: text.len() as u64,
            executable: false,
        };
        Manifest::new("files", files.iter().map(file).collect())
    };
    let (old, new) = (manifest(&[("a", "1"), ("b", "2")]), manifest(&[("b", "3"), ("c", "4")]));
    let records = Memory { manifests: vec![old.clone(), new.clone()], ..Memory::default() };
    let with = |m: &Manifest| Fingerprint {
        inputs: BTreeMap::from([("docs".to_string(), vec![m.digest()])]),
        ..ran(PIPELINE).actions[0].fingerprint.clone()
    };
    let found = differences(&with(&old), &with(&new), &records);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].detail(), "input docs: a removed, b changed, c added");
    assert_eq!(json!(found[0])["field"], "input");
}
