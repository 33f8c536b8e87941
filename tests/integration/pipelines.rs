//! Every shipped pipeline in a short variant: all of its stages, with little text, few steps and a small model.

use serde_json::Value;

use crate::project::Project;

/// What makes a pipeline short enough for a test.
struct Short {
    /// The file's stem in `pipelines/`.
    name: &'static str,
    /// `PATH=VALUE` of `--set`.
    set: &'static [&'static str],
    /// Makes the files that the pipeline's users bring, and says by which `PATH=VALUE` it finds them.
    bring: fn(&Project) -> Vec<String>,
}

/// The pipelines of `pipelines/`, all of them.
const SHORT: [Short; 15] = [
    Short {
        name: "assistant",
        set: &[
            "vars.synthetic=60",
            "vars.pretrain_steps=3",
            "vars.finetune_steps=3",
            "vars.lora_steps=3",
            "vars.prefer_steps=3",
        ],
        bring: nothing,
    },
    Short {
        name: "conversational",
        set: &[
            "vars.synthetic=60",
            "vars.text_steps=3",
            "vars.chat_steps=3",
            "stages.base.params.d_model=32",
            "stages.base.params.n_layer=1",
        ],
        bring: nothing,
    },
    Short {
        name: "distill",
        set: &[
            "vars.synthetic=60",
            "vars.teacher_steps=3",
            "vars.student_steps=3",
            "stages.taught.params.top_k=4",
        ],
        bring: nothing,
    },
    Short {
        name: "distill_quantize",
        set: &[
            "vars.synthetic=60",
            "vars.teacher_steps=3",
            "vars.student_steps=3",
            "stages.q8.params.gates={}",
            "stages.q4.params.gates={}",
        ],
        bring: nothing,
    },
    Short {
        name: "domain_adaptation",
        set: &["vars.documents=60", "vars.general_steps=3", "vars.medical_steps=3"],
        bring: nothing,
    },
    Short {
        name: "educational",
        set: &[
            "vars.synthetic=60",
            "vars.steps=3",
            "vars.early=1",
            "vars.middle=2",
            "stages.model.params.d_model=32",
            "stages.model.params.n_layer=1",
        ],
        bring: nothing,
    },
    Short { name: "go_tiny", set: &[], bring: nothing },
    Short {
        name: "grammar",
        set: &[
            "vars.steps=3",
            "stages.tokenizer.params.vocab_size=300",
            "stages.model.params.d_model=32",
            "stages.model.params.n_layer=1",
        ],
        bring: books_and_pairs,
    },
    Short { name: "import_stories260k", set: &["vars.student_steps=3"], bring: llama2c_checkpoint },
    Short {
        name: "lora",
        set: &["vars.conversations=60", "vars.base_steps=3", "vars.steps=3"],
        bring: nothing,
    },
    Short {
        name: "preferences",
        set: &["vars.synthetic=60", "vars.pretrain_steps=3", "vars.finetune_steps=3", "vars.prefer_steps=3"],
        bring: nothing,
    },
    Short {
        name: "quantize",
        // What three steps have learned is not worth a bar.
        set: &[
            "vars.synthetic=60",
            "vars.pretrain_steps=3",
            "vars.finetune_steps=3",
            "stages.q8.params.gates={}",
            "stages.q4.params.gates={}",
            "stages.base.params.d_model=32",
            "stages.base.params.n_layer=1",
            "stages.base.params.n_head=2",
        ],
        bring: nothing,
    },
    Short {
        name: "stories",
        set: &[
            "vars.batch=2",
            "vars.accumulate=2",
            "vars.steps=3",
            "vars.early=1",
            "vars.middle=2",
            "stages.base.params.vocab_size=257",
            "stages.base.params.d_model=32",
            "stages.base.params.n_head=2",
            "stages.base.params.n_layer=1",
        ],
        bring: stories_and_gpt2,
    },
    Short {
        name: "templates_only",
        set: &[
            "vars.documents=200",
            "vars.cloze=20",
            "vars.base_steps=3",
            "vars.student_steps=3",
            "stages.base.params.d_model=32",
            "stages.int8.params.gates={}",
            "stages.report.params.gates={}",
        ],
        bring: nothing,
    },
    Short {
        name: "two_stage",
        set: &["vars.synthetic=60", "vars.pretrain_steps=3", "vars.finetune_steps=3"],
        bring: nothing,
    },
];

#[test]
fn every_shipped_pipeline_runs_in_a_short_variant() {
    let project = Project::shipped();
    for name in shipped() {
        let short = SHORT.iter().find(|s| s.name == name).unwrap_or_else(|| {
            panic!("pipelines/{name}.yaml has no short variant in tests/integration/pipelines.rs")
        });
        run(&project, short);
    }
}

#[test]
fn the_smallest_model_says_the_sentence_that_it_learned_and_so_does_its_copy() {
    let project = Project::shipped();
    let ran = project.tinylm(&["run", "go_tiny"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let said = |model: &str, most: &str| {
        let args = ["generate", "--model", model, "--prompt", "the cat", "--strategy", "greedy"];
        project.tinylm(&[&args[..], &["--max-new-tokens", most]].concat()).stdout
    };
    assert_eq!(said("go_tiny:model", "4").trim_end(), "the cat sat on mat END");
    assert_eq!(said("go_tiny:back", "9").trim_end(), "the cat sat on mat", "END ends it");
    let unknown = project.tinylm(&["generate", "--model", "go_tiny:model", "--prompt", "the cow"]);
    assert_eq!(unknown.code, 2, "{}", unknown.stderr);
    assert!(
        unknown.stderr.contains("`cow` cannot be encoded")
            && unknown.stderr.contains("help: the tokenizer has no")
    );
    let metrics = project.read("artifacts/go_tiny/model/model/metrics.jsonl");
    let last: Value = serde_json::from_str(metrics.lines().last().expect("metrics")).expect("JSON");
    assert!(last["loss"].as_f64().is_some_and(|loss| loss < 0.9), "{last}");
}

#[test]
fn the_table_of_short_variants_names_shipped_pipelines() {
    let shipped = shipped();
    for short in &SHORT {
        assert!(shipped.iter().any(|s| s == short.name), "there is no pipelines/{}.yaml", short.name);
    }
}

/// The stems of the files in `pipelines/`, sorted.
fn shipped() -> Vec<String> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines");
    let paths = std::fs::read_dir(folder).expect("pipelines/").map(|entry| entry.expect("an entry").path());
    let yaml = paths.filter(|path| path.extension().is_some_and(|e| e == "yaml"));
    let mut names: Vec<_> =
        yaml.map(|p| p.file_stem().expect("a name").to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Runs the variant, and holds that every stage ran, or an equal one of another pipeline before, and that every output
/// is where the run's view has it.
fn run(project: &Project, short: &Short) {
    let name = short.name;
    let mut sets: Vec<String> = short.set.iter().map(|s| s.to_string()).collect();
    sets.extend((short.bring)(project));
    let mut args = vec!["run", name, "--format", "json"];
    args.extend(sets.iter().flat_map(|set| ["--set", set.as_str()]));
    let ran = project.tinylm(&args);
    let last = ran.stdout.lines().last().unwrap_or("");
    assert_eq!(ran.code, 0, "{name}: {last}\n{}", ran.stderr);
    let summary: Value = serde_json::from_str(last).expect("a JSON line");
    assert_eq!(summary["ok"], true, "{name}: {last}");
    for stage in summary["stages"].as_array().expect("stages") {
        assert!(stage["status"] == "ran" || stage["status"] == "cached", "{name}: {stage}");
        for port in stage["outputs"].as_object().expect("outputs").keys() {
            let folder = format!("artifacts/{name}/{}/{port}", stage["stage"].as_str().expect("a name"));
            assert!(project.path(&folder).exists(), "{name}: there is no {folder}");
        }
    }
}

fn nothing(_: &Project) -> Vec<String> {
    Vec::new()
}

/// Stories with `<|endoftext|>` between them, and a tokenizer in GPT-2's form: of bytes, nothing merged.
fn stories_and_gpt2(project: &Project) -> Vec<String> {
    let story =
        |i| format!("Story {i}. Once upon a time there was a cat with {i} kittens. They played all day.");
    let stories: Vec<String> = (0..60).map(story).collect();
    project.write("mine/stories.txt", stories.join("\n<|endoftext|>\n"));
    // GPT-2 writes a byte as the character of that number where it is visible, else as one from 256 on.
    let visible = |byte: &u32| matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    let letters = (0..256).filter(visible).chain(256..256 + (0..256).filter(|b| !visible(b)).count() as u32);
    let symbols = letters.map(|code| char::from_u32(code).expect("a character").to_string());
    let tokens = symbols.chain(["<|endoftext|>".into()]);
    let vocab: serde_json::Map<String, Value> = tokens.zip(0..).map(|(t, id)| (t, Value::from(id))).collect();
    project.write("mine/encoder.json", Value::Object(vocab).to_string());
    project.write("mine/vocab.bpe", "#version: 0.2\n");
    let tokenizer = "vars.tokenizer=[./mine/encoder.json, ./mine/vocab.bpe]".to_string();
    vec!["vars.stories=./mine/stories.txt".into(), tokenizer]
}

/// A book of paragraphs, and two minimal pairs in BLiMP's columns.
fn books_and_pairs(project: &Project) -> Vec<String> {
    let paragraph =
        |i| format!("On day {i} the keeper of the lamps was at home. Nobody had seen the {i} ships.\n\n");
    project.write("mine/book.txt", (0..200).map(paragraph).collect::<String>());
    let pairs = "UID\tsentence_good\tsentence_bad\n\
                 agreement\tThe keeper was at home.\tThe keeper were at home.\n\
                 npi\tNobody had ever seen it.\tSomebody had ever seen it.\n";
    project.write("mine/pairs.tsv", pairs);
    vec!["vars.corpus=./mine/book.txt".into(), "vars.pairs=./mine/pairs.tsv".into()]
}

/// A checkpoint and a tokenizer in llama2.c's form (its `export.py`, version 0, and `tokenizer.py`): Llama's
/// architecture with one layer of width 32 and weights of no training.
fn llama2c_checkpoint(project: &Project) -> Vec<String> {
    let letters = (b'a'..=b'z').map(|c| vec![c]).chain([b" ".to_vec()]);
    let bytes = (0..=255).map(|b| format!("<0x{b:02X}>").into_bytes());
    let special = [&b"<unk>"[..], b"\n<s>\n", b"\n</s>\n"].map(<[u8]>::to_vec);
    let pieces: Vec<Vec<u8>> = special.into_iter().chain(bytes).chain(letters).collect();
    let mut tokenizer = 8i32.to_le_bytes().to_vec();
    for (rank, piece) in pieces.iter().enumerate() {
        tokenizer.extend((-(rank as f32)).to_le_bytes());
        tokenizer.extend((piece.len() as i32).to_le_bytes());
        tokenizer.extend(piece);
    }
    project.write("mine/tokenizer.bin", tokenizer);

    let (width, hidden, layers, heads, kv_heads, context) = (32, 64, 1, 2, 1, 64);
    let header = [width, hidden, layers, heads, kv_heads, pieces.len(), context];
    let mut checkpoint: Vec<u8> = header.iter().flat_map(|&n| (n as i32).to_le_bytes()).collect();
    let kv_width = width * kv_heads / heads;
    let attention = 2 * width * width + 2 * width * kv_width;
    // Embedding; norms of attention; attention; norms of the feed-forward part, that part; the last norm; two
    // tables of rotary frequencies that readers skip.
    let numbers = pieces.len() * width + 3 * width + attention + 3 * width * hidden + context * width / heads;
    checkpoint.extend((0..numbers).flat_map(|i| ((i as f32 * 0.7).sin() * 0.2).to_le_bytes()));
    project.write("mine/model.bin", checkpoint);
    vec!["vars.checkpoint=./mine/model.bin".into(), "vars.tokenizer=./mine/tokenizer.bin".into()]
}
