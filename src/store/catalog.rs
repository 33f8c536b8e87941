//! What is in the store, as a whole: which action made an artifact, and which ones use it.

use std::collections::{BTreeMap, HashMap};

use super::{Action, Store};
use crate::base::{Digest, Result, fs};

/// Every action on record.
#[derive(Default)]
pub struct Catalog {
    /// The latest first, by the runs that made them.
    actions: Vec<Recorded>,
    places: HashMap<Digest, usize>,
    /// Artifact -> places of the actions that gave it, and of those that read it.
    makers: HashMap<Digest, Vec<usize>>,
    users: HashMap<Digest, Vec<usize>>,
    /// Why records cannot be read, of those that cannot.
    pub unreadable: Vec<String>,
}

/// An action on record.
pub struct Recorded {
    pub key: Digest,
    pub action: Action,
    /// The stages that it is one of the latest actions of.
    pub stages: Vec<StageOf>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageOf {
    /// The folder of the pipeline's results.
    pub pipeline: String,
    pub stage: String,
    /// Whether it is the latest.
    pub is_latest: bool,
}

impl Catalog {
    /// Reads all records of the store.
    ///
    /// # Errors
    /// When its folders cannot be listed. A record that cannot be read is in [`Catalog::unreadable`].
    pub fn read(store: &Store) -> Result<Self> {
        let mut catalog = Catalog::default();
        let mut stages = stages(store)?;
        for key in
            names(store, "actions")?.into_iter().filter_map(|name| format!("blake3:{name}").parse().ok())
        {
            match store.action(&key) {
                Some(action) => {
                    let stages = stages.remove(&key).unwrap_or_default();
                    catalog.actions.push(Recorded { key, action, stages });
                }
                None => catalog.unreadable.extend(store.damaged_record(&key)),
            }
        }
        catalog.actions.sort_by(|a, b| (&b.action.run, a.key).cmp(&(&a.action.run, b.key)));
        catalog.connect();
        Ok(catalog)
    }

    fn connect(&mut self) {
        for (place, Recorded { key, action, .. }) in self.actions.iter().enumerate() {
            self.places.insert(*key, place);
            for output in action.outputs.values() {
                add(&mut self.makers, output, place);
            }
            for input in action.fingerprint.inputs.values().flatten() {
                add(&mut self.users, input, place);
            }
        }
    }

    /// All actions, the latest first.
    pub fn actions(&self) -> &[Recorded] {
        &self.actions
    }

    pub fn action(&self, key: &Digest) -> Option<&Recorded> {
        self.places.get(key).map(|place| &self.actions[*place])
    }

    /// The actions that gave `artifact`, the latest first.
    pub fn makers(&self, artifact: &Digest) -> impl Iterator<Item = &Recorded> {
        self.at(self.makers.get(artifact))
    }

    /// The actions that read `artifact`, the latest first.
    pub fn users(&self, artifact: &Digest) -> impl Iterator<Item = &Recorded> {
        self.at(self.users.get(artifact))
    }

    fn at<'a>(&'a self, places: Option<&'a Vec<usize>>) -> impl Iterator<Item = &'a Recorded> {
        places.into_iter().flatten().map(|place| &self.actions[*place])
    }
}

/// An action may give one artifact at two ports.
fn add(to: &mut HashMap<Digest, Vec<usize>>, artifact: &Digest, place: usize) {
    let places = to.entry(*artifact).or_default();
    if places.last() != Some(&place) {
        places.push(place);
    }
}

/// Which stages an action is one of the latest of.
fn stages(store: &Store) -> Result<BTreeMap<Digest, Vec<StageOf>>> {
    let mut found: BTreeMap<Digest, Vec<StageOf>> = BTreeMap::new();
    for pipeline in children(store, "history")? {
        for stage in names(store, &format!("history/{pipeline}"))? {
            let keys = store.history(&pipeline, &stage);
            for key in &keys {
                let (pipeline, stage) = (pipeline.clone(), stage.clone());
                let is_latest = keys.last() == Some(key);
                found.entry(*key).or_default().push(StageOf { pipeline, stage, is_latest });
            }
        }
    }
    Ok(found)
}

/// The names of the JSON files in a folder of the store, without their ending.
fn names(store: &Store, folder: &str) -> Result<Vec<String>> {
    let all = children(store, folder)?;
    Ok(all.into_iter().filter_map(|name| Some(name.strip_suffix(".json")?.to_string())).collect())
}

/// The names of what is in a folder of the store; none where it is not there.
fn children(store: &Store, folder: &str) -> Result<Vec<String>> {
    let path = store.root.join(folder);
    if !path.is_dir() {
        return Ok(Vec::new());
    }
    let name = |path: std::path::PathBuf| path.file_name()?.to_str().map(str::to_string);
    Ok(fs::children(&path)?.into_iter().filter_map(name).collect())
}

#[cfg(test)]
mod tests {
    use super::super::tests::commit;
    use super::*;

    #[test]
    fn it_knows_who_made_an_artifact_and_who_uses_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), false);
        assert!(Catalog::read(&store).unwrap().actions().is_empty());
        let made = commit(&store, 1, "hello");
        let mut user = commit(&store, 2, "bye");
        user.fingerprint.inputs.insert("text".into(), vec![made.outputs["out"]]);
        let (maker_key, user_key) = (made.fingerprint.key(), user.fingerprint.key());
        let user = store.commit(user, &BTreeMap::new()).unwrap();
        for key in [user_key, maker_key] {
            store.remember("p", "greet", &key).unwrap();
        }
        fs::write(&store.json("actions", &Digest::of(b"x").hex()), b"{").unwrap();
        let catalog = Catalog::read(&store).unwrap();
        let keys = |found: Vec<&Recorded>| found.iter().map(|r| r.key).collect::<Vec<_>>();
        let artifact = &made.outputs["out"];
        assert_eq!(keys(catalog.makers(artifact).collect()), [maker_key]);
        assert_eq!(keys(catalog.users(artifact).collect()), [user_key]);
        assert_eq!(catalog.users(&user.outputs["out"]).count(), 0);
        let greet = |is_latest| StageOf { pipeline: "p".into(), stage: "greet".into(), is_latest };
        assert_eq!(catalog.action(&maker_key).unwrap().stages, [greet(true)]);
        assert_eq!(catalog.action(&user_key).unwrap().stages, [greet(false)]);
        assert!(catalog.unreadable.len() == 1 && catalog.unreadable[0].contains("does not read"));
    }
}
