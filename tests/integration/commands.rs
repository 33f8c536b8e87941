//! `kind: command` and the files it reads and leaves: what it sees, what is taken of it, how it ends.
#![cfg(unix)]

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::project::{Project, stage, statuses};

/// A pipeline of one stage `a` with this script; its output is `o` of type `ty`.
fn script(inputs: &str, ty: &str, text: &str) -> Project {
    let quoted = serde_json::to_string(text).unwrap();
    Project::new(&format!(
        "stages:\n  a:\n    kind: command\n    inputs: {inputs}\n    outputs: {{ o: {ty} }}\n    params: {{ command: [sh, -c, {quoted}] }}\n"
    ))
}

/// The error of stage `a`, which must fail.
fn error(project: &Project) -> String {
    let (code, summary) = project.try_run(&[]);
    assert_eq!(code, 1, "{summary}");
    stage(&summary, "a")["error"].as_str().unwrap_or_else(|| panic!("{summary}")).to_string()
}

fn log(project: &Project, summary: &serde_json::Value) -> String {
    project.read(&format!("artifacts/runs/{}/a.log", summary["run"].as_str().unwrap()))
}

/// Permissions, inode and content of every file below.
fn state(folder: &Path) -> Vec<(String, u32, u64, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        let meta = path.symlink_metadata().unwrap();
        if meta.is_dir() {
            all.extend(state(&path));
        } else if meta.is_file() {
            let bytes = std::fs::read(&path).unwrap();
            all.push((path.display().to_string(), meta.mode(), meta.ino(), bytes));
        }
    }
    all.sort();
    all
}

/// Waits until `met`, for half a minute.
fn wait_for(what: &str, met: impl Fn() -> bool) {
    let begun = Instant::now();
    while !met() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// How many processes have `mark` as an argument.
fn running(mark: &str) -> usize {
    let with_mark = |entry: &std::fs::DirEntry| {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        line.split(|b| *b == 0).any(|word| word == mark.as_bytes())
    };
    std::fs::read_dir("/proc").unwrap().flatten().filter(with_mark).count()
}

#[test]
fn links_in_an_output_are_copied_or_refused_by_name() {
    let p =
        script("{}", "files", "mkdir ${outputs.o}/d; echo real > ${outputs.o}/d/x; ln -s d/x ${outputs.o}/y");
    p.run(&[]);
    let shown = p.path("artifacts/p/a/o/y");
    assert!(shown.symlink_metadata().unwrap().is_file());
    assert_eq!(std::fs::read(&shown).unwrap(), b"real\n");
    for (text, part) in [
        (
            "ln -s ../../inputs/t/u.txt ${outputs.o}/y",
            "`y` -> `../../inputs/t/u.txt`, that leads out of the output",
        ),
        ("ln -s gone ${outputs.o}/y", "that leads to nothing"),
        ("mkdir ${outputs.o}/d; ln -s d ${outputs.o}/y", "that leads to a folder"),
        ("mkfifo ${outputs.o}/pipe", "the output `o` holds a named pipe, `pipe`"),
    ] {
        let p = script("{ t: data/u.txt }", "files", text);
        p.write("data/u.txt", "mine\n");
        let error = error(&p);
        assert!(error.contains(part), "{error}");
        assert!(!p.path("artifacts/p/a").exists());
    }
    // The whole output a link.
    let p = script("{ t: data/u.txt }", "file", "ln -s ../inputs/t/u.txt ${outputs.o}");
    p.write("data/u.txt", "mine\n");
    assert!(error(&p).contains("leads out of the output"));
}

#[test]
fn nothing_of_the_users_is_changed_however_it_is_copied() {
    for copy in ["cp -r", "cp -a", "cp -rl", "cp -rs"] {
        let p = Project::new("");
        p.write("data/d/x.txt", "x\n");
        p.write("data/d/e/y.txt", "y\n");
        symlink("x.txt", p.path("data/d/z.txt")).unwrap();
        std::fs::set_permissions(p.path("data/d/x.txt"), std::fs::Permissions::from_mode(0o664)).unwrap();
        let before = state(&p.path("data"));
        for source in [p.path("data/d").display().to_string(), "${inputs.d}".to_string()] {
            let text = format!(
                "stages:\n  a: {{ kind: command, inputs: {{ d: data/d }}, outputs: {{ o: files }}, params: {{ command: [sh, -c, '{copy} {source} ${{outputs.o}}/d || cp -r {source} ${{outputs.o}}/d'] }} }}\n"
            );
            p.write("pipelines/p.yaml", text);
            p.try_run(&["--force", "a"]);
            assert_eq!(state(&p.path("data")), before, "{copy} {source}");
            for file in state(&p.path("artifacts/store/objects")) {
                assert!(before.iter().all(|user| user.2 != file.2), "{copy} {source}: shares an inode");
            }
        }
    }
}

#[test]
fn a_source_that_is_no_file_is_named_at_once() {
    let p = script("{ t: data/d }", "file", "cat ${inputs.t} > ${outputs.o}");
    p.write("data/d/x.txt", "x\n");
    let refused = |part: &str| {
        let begun = Instant::now();
        let ran = p.tinylm(&["plan", "p"]);
        assert!(ran.stderr.contains(part) && ran.code != 0, "{part}: {}", ran.stderr);
        assert!(ran.stderr.contains("pipelines/p.yaml:4"), "{}", ran.stderr);
        assert!(begun.elapsed() < Duration::from_secs(10));
    };
    let path = p.path("data/d/odd");
    let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: the name ends with a zero byte.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o644) }, 0);
    refused("odd` is a named pipe");
    std::fs::remove_file(&path).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    refused("odd` is a socket");
    std::fs::remove_file(&path).unwrap();
    symlink("/dev/zero", &path).unwrap();
    refused("odd` is a device");
    std::fs::remove_file(&path).unwrap();
    symlink("gone", &path).unwrap();
    refused("odd` is a link to nothing");
    std::fs::remove_file(&path).unwrap();
    symlink("..", &path).unwrap();
    refused("in which it lies");
    // Two folders that lead to each other.
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(p.path("data/other")).unwrap();
    symlink("../other", p.path("data/d/there")).unwrap();
    symlink("../d", p.path("data/other/back")).unwrap();
    refused("in which it lies");
    for (source, part) in [("data/odd", "is a named pipe"), ("'data/o*d'", "is a named pipe")] {
        let p = script(&format!("{{ t: {source} }}"), "file", "cat ${inputs.t} > ${outputs.o}");
        std::fs::create_dir(p.path("data")).unwrap();
        let name = std::ffi::CString::new(p.path("data/odd").to_str().unwrap()).unwrap();
        // SAFETY: as above.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o644) }, 0);
        let ran = p.tinylm(&["run", "p"]);
        assert!(ran.stderr.contains(part), "{}", ran.stderr);
    }
}

#[test]
fn closed_folders_of_a_scratch_are_read_and_removed() {
    let text = "mkdir -p ${outputs.o}/d locked/in; echo x > ${outputs.o}/d/x; chmod 0 ${outputs.o}/d/x ${outputs.o}/d locked/in locked";
    let p = script("{}", "files", text);
    let tinylm = p.path("tinylm");
    std::fs::copy(env!("CARGO_BIN_EXE_tinylm"), &tinylm).unwrap();
    let mut command = std::process::Command::new(&tinylm);
    command.args(["run", "p"]).current_dir(p.path(""));
    // SAFETY: it only returns a number.
    if unsafe { libc::geteuid() } == 0 {
        // To the superuser nothing is closed.
        use std::os::unix::process::CommandExt;
        for folder in ["", "pipelines"] {
            std::os::unix::fs::chown(p.path(folder), Some(65534), Some(65534)).unwrap();
        }
        command.uid(65534).gid(65534);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(p.read("artifacts/p/a/o/d/x"), "x\n");
    assert_eq!(std::fs::read_dir(p.path("artifacts/store/tmp")).unwrap().count(), 0);
}

#[test]
fn inputs_are_plain_files_that_every_tool_sees() {
    let text = "cd inputs/d; { find . -type f | sort; grep -rl word . | sort; tar cf - . | tar tf - | grep -c txt; } > ../../${outputs.o}";
    let p = script("{ d: data/d }", "file", text);
    p.write("data/d/one.txt", "word\n");
    p.write("data/d/e/two.txt", "word\n");
    p.run(&[]);
    assert_eq!(p.read("artifacts/p/a/o/o"), "./e/two.txt\n./one.txt\n./e/two.txt\n./one.txt\n2\n");
}

#[test]
fn a_command_cannot_change_the_store_or_a_source_through_its_inputs() {
    let text = "
stages:
  make: { kind: command, outputs: { o: file }, params: { command: [sh, -c, 'echo made > ${outputs.o}'] } }
  a:
    kind: command
    inputs: { m: make, s: data/s.txt }
    outputs: { o: file }
    params: { command: [sh, -c, 'for f in ${inputs.m} ${inputs.s}; do chmod u+w $f; echo more >> $f; done; cat ${inputs.m} ${inputs.s} > ${outputs.o}'] }
";
    let p = Project::new(text);
    p.write("data/s.txt", "source\n");
    let before = state(&p.path("data"));
    p.run(&[]);
    assert_eq!(p.read("artifacts/p/make/o/o"), "made\n");
    assert_eq!(state(&p.path("data")), before);
    assert_eq!(statuses(&p.run(&["--paranoid"])), ["make=cached", "a=cached"]);
}

#[test]
fn paths_are_the_same_in_every_run() {
    let text = "sha256sum ${inputs.t} > ${outputs.o}; echo ${inputs.t} ${outputs.o} $P >> ${outputs.o}; tar cf - inputs | sha256sum >> ${outputs.o}";
    let p = script("{ t: data/t.txt, d: data/d }", "file", text);
    p.write("data/t.txt", "t\n");
    p.write("data/d/e/x.txt", "x\n");
    p.write("data/d/y.txt", "y\n");
    let yaml = p.read("pipelines/p.yaml").replace("] }", "], env: { P: 'x=${inputs.t}' } }");
    p.write("pipelines/p.yaml", yaml);
    p.run(&[]);
    let said = p.read("artifacts/p/a/o/o");
    assert!(said.contains("  inputs/t/t.txt\ninputs/t/t.txt outputs/o x=inputs/t/t.txt\n"), "{said}");
    std::fs::set_permissions(p.path("data/t.txt"), std::fs::Permissions::from_mode(0o600)).unwrap();
    // In another second, so that a time could be told from another.
    std::thread::sleep(Duration::from_millis(1100));
    p.run(&["--locked", "--force", "a"]);
}

#[test]
fn odd_names_are_one_word_in_a_script_and_nothing_lands_elsewhere() {
    let outer = tempfile::tempdir().unwrap();
    let folder = outer.path().join("my proj; echo 'x'");
    let names =
        ["a b.txt", "it's.txt", "semi;colon.txt", "line\nbreak.txt", "$HOME `id` \"q\" \\.txt", "-rf *.txt"];
    std::fs::create_dir_all(folder.join("pipelines")).unwrap();
    std::fs::create_dir_all(folder.join("data")).unwrap();
    let mut text = "stages:\n".to_string();
    for (i, name) in names.iter().enumerate() {
        std::fs::write(folder.join("data").join(name), format!("content {i}\n")).unwrap();
        let source = serde_json::to_string(&format!("data/{}", name.replace('*', "[*]"))).unwrap();
        let source = source.replace("${", "$${");
        text += &format!(
            "  s{i}:\n    kind: command\n    inputs: {{ t: {source} }}\n    outputs: {{ o: file }}\n    params:\n      command: [sh, -ec, 'cat ${{inputs.t}} > ${{outputs.o}}; cat \"${{inputs.t}}\" >> ${{outputs.o}}; sh -c ''cat \"$1\"'' sh ${{inputs.t}} >> \"${{outputs.o}}\"']\n"
        );
    }
    std::fs::write(folder.join("pipelines/p.yaml"), text).unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tinylm"));
    let output = command.args(["run", "p"]).current_dir(&folder).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for i in 0..names.len() {
        let made = std::fs::read_to_string(folder.join(format!("artifacts/p/s{i}/o/o"))).unwrap();
        assert_eq!(made, format!("content {i}\n").repeat(3));
    }
    assert_eq!(std::fs::read_dir(outer.path()).unwrap().count(), 1, "a stray file beside the project");
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 3);
}

#[test]
fn a_reference_in_env_is_resolved_or_refused() {
    let text = "stages:\n  a: { kind: command, outputs: { o: file }, params: { command: [sh, -c, 'echo $P > ${outputs.o}'], env: { P: 'to ${outputs.o}' } } }\n";
    let p = Project::new(text);
    p.run(&[]);
    assert_eq!(p.read("artifacts/p/a/o/o"), "to outputs/o\n");
    p.write("pipelines/p.yaml", text.replace("to ${outputs.o}", "to ${inputs.x}"));
    let ran = p.tinylm(&["validate", "p"]);
    assert!(ran.code == 2 && ran.stderr.contains("there is no input `x`"), "{}", ran.stderr);
    assert!(ran.stderr.contains("pipelines/p.yaml:2"), "{}", ran.stderr);
}

#[test]
fn a_folder_where_a_file_is_declared_is_said() {
    let p = script("{}", "file", "mkdir ${outputs.o}; echo x > ${outputs.o}/x");
    assert!(error(&p).contains("declared as `file`, and the command made a folder"));
}

#[test]
fn children_left_behind_are_ended_and_said() {
    // One in the group that holds the pipe, one that ignores TERM, one that left the group.
    let text = "echo a > ${outputs.o}; (sleep 4711; echo late >> ${outputs.o}) & (trap '' TERM; sleep 4711) & setsid sleep 4711 & sleep 0.1";
    let p = script("{}", "file", text);
    let begun = Instant::now();
    let summary = p.run(&[]);
    assert!(begun.elapsed() < Duration::from_secs(30));
    let log = log(&p, &summary);
    assert!(log.contains("left running: ") && log.contains("sleep (process"), "{log}");
    assert_eq!(p.read("artifacts/p/a/o/o"), "a\n");
    wait_for("the sleep goes on", || running("4711") == 0);
}

#[test]
fn a_child_that_never_stops_talking_does_not_hold_the_run() {
    let p = script("{}", "file", "echo a > ${outputs.o}; yes 4712 & sleep 0.1");
    let summary = p.run(&[]);
    assert!(log(&p, &summary).contains("left running: yes"));
    wait_for("`yes` goes on", || running("4712") == 0);
}

#[test]
fn what_ends_by_itself_in_a_moment_is_waited_for() {
    let p = script("{}", "file", "(sleep 0.05; echo b >> ${outputs.o}) & echo a > ${outputs.o}");
    let summary = p.run(&[]);
    assert!(!log(&p, &summary).contains("left running"));
    assert_eq!(p.read("artifacts/p/a/o/o"), "a\nb\n");
}

/// Starts a run whose commands do not want to end, and gives it `signals`, a moment apart.
fn ended_by(mark: &str, signals: &[nix::sys::signal::Signal]) {
    let signs = tempfile::tempdir().unwrap();
    let begun = signs.path().join("begun");
    let text = format!(
        "trap '' TERM INT HUP QUIT; setsid sleep {mark} & (sleep {mark}; true) & touch {}; sleep {mark}; true",
        begun.display()
    );
    let p = script("{}", "file", &text);
    let mut run = p.command(&["run", "p"]);
    run.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    // SAFETY: `signal` may be called between fork and exec. Tests that run under `nohup` ignore SIGHUP, those that a
    // shell runs behind `&` SIGINT and SIGQUIT, and so would the run.
    unsafe {
        std::os::unix::process::CommandExt::pre_exec(&mut run, || {
            for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT] {
                libc::signal(signal, libc::SIG_DFL);
            }
            Ok(())
        });
    }
    let mut child = run.spawn().unwrap();
    wait_for("the command does not begin", || begun.exists() && running(mark) >= 3);
    let guard = guard_of(child.id()).expect("a guard");
    for signal in signals {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), *signal).unwrap();
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(!child.wait().unwrap().success());
    wait_for(&format!("commands survive {signals:?}"), || running(mark) == 0);
    wait_for("the guard stays", || !is_guard(&guard));
}

/// The process that ends the commands of process `id`, should that die.
fn guard_of(id: u32) -> Option<String> {
    let threads = std::fs::read_dir(format!("/proc/{id}/task")).ok()?.flatten();
    let children = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    let children: Vec<String> =
        children.flat_map(|c| c.split(' ').map(str::to_string).collect::<Vec<_>>()).collect();
    children.into_iter().find(|id| is_guard(id))
}

fn is_guard(id: &str) -> bool {
    // By a name of its own, so that `killall tinylm` leaves it to its work.
    std::fs::read_to_string(format!("/proc/{id}/comm")).is_ok_and(|name| name == "command-guard\n")
}

#[test]
fn nothing_survives_the_end_of_the_run() {
    use nix::sys::signal::Signal::{SIGHUP, SIGINT, SIGKILL, SIGQUIT, SIGTERM};
    ended_by("4721", &[SIGINT, SIGINT]);
    ended_by("4722", &[SIGHUP]);
    ended_by("4723", &[SIGQUIT]);
    ended_by("4724", &[SIGKILL]);
    ended_by("4725", &[SIGTERM]);
}

#[test]
#[expect(clippy::zombie_processes, reason = "wait4 waits, and tells how much memory it took")]
fn output_without_end_takes_neither_memory_nor_disk() {
    let text = "head -c 300000000 /dev/zero | tr '\\0' x; yes | head -c 30000000; echo a > ${outputs.o}; echo last; exit 3";
    let p = script("{}", "file", text);
    let child = p
        .command(&["run", "p", "--format", "json"])
        .stdout(std::fs::File::create(p.path("stdout")).unwrap())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    // SAFETY: both are plain structures of numbers that the call fills.
    let usage = unsafe {
        let (mut status, mut usage): (i32, libc::rusage) = (0, std::mem::zeroed());
        assert_eq!(libc::wait4(child.id() as i32, &mut status, 0, &mut usage), child.id() as i32);
        usage
    };
    assert!(usage.ru_maxrss < 250_000, "{} KiB", usage.ru_maxrss);
    assert!(p.path("stdout").metadata().unwrap().len() < 10 << 20);
    let run = std::fs::read_dir(p.path("artifacts/runs")).unwrap().next().unwrap().unwrap().path();
    let log = std::fs::read_to_string(run.join("a.log")).unwrap();
    assert!(log.len() < 20 << 20, "{}", log.len());
    assert!(log.contains("this log is full (16.0 MiB)"));
    // What came at the end is in the error, which is never left out.
    assert!(log.contains("exit status: 3") && log.contains("  last"));
    let left_out = log.lines().last().unwrap();
    assert!(left_out.ends_with(" lines were left out of this log"), "{left_out}");
    let left_out = left_out.split(' ').next().unwrap().replace(',', "");
    // All that `yes` said, what is behind the first 16 MiB of the line without end, and `last`.
    let pieces = 300_000_000_u64.div_ceil(1 << 16) - 256;
    assert!(left_out.parse::<u64>().unwrap().abs_diff(15_000_000 + pieces) < 1000, "{left_out}");
    assert!(run.join("events.jsonl").metadata().unwrap().len() < 10 << 20);
}

#[test]
fn escape_sequences_reach_no_file_and_no_terminal() {
    let text = "printf '\\033]0;title\\007red \\033[31m\\302\\233x\\n' ; touch \"${outputs.o}/$(printf 'n\\033[1m')\"; mkfifo \"${outputs.o}/$(printf 'q\\033[1m')\"";
    let p = script("{}", "files", text);
    let ran = p.tinylm(&["run", "p"]);
    assert_eq!(ran.code, 1);
    for shown in [&ran.stdout, &ran.stderr] {
        assert!(!shown.chars().any(|c| c.is_control() && c != '\n'), "{shown:?}");
    }
    assert!(ran.stderr.contains("\\x1b]0;title\\x07red \\x1b[31m\\x9bx"), "{}", ran.stderr);
    assert!(ran.stderr.contains("holds a named pipe, `q\\x1b[1m`"), "{}", ran.stderr);
    let run = std::fs::read_dir(p.path("artifacts/runs")).unwrap().next().unwrap().unwrap().path();
    for file in std::fs::read_dir(&run).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        assert!(!text.contains('\x1b') && !text.contains('\u{9b}'), "{text}");
    }
    // Nor do they within the names of files that a plan speaks of.
    let p = script("{ t: ./data }", "file", "cat ${inputs.t}/* > ${outputs.o}");
    p.write("data/\x1b[1m", "x\n");
    p.write("data/y", "y\n");
    p.run(&[]);
    p.write("data/\x1b[1m", "changed\n");
    let ran = p.tinylm(&["plan", "p"]);
    assert!(ran.stdout.contains("input t: \\x1b[1m changed"), "{:?}", ran.stdout);
}

#[test]
fn a_standard_output_that_takes_nothing_is_an_error() {
    let p = script("{}", "file", "echo a > ${outputs.o}");
    p.run(&[]);
    p.write("x.jsonl", "{\"text\":\"a\"}\n");
    let commands: [&[&str]; 14] = [
        &["run", "p"],
        &["run", "p", "--format", "json"],
        &["plan", "p"],
        &["plan", "p", "--format", "json"],
        &["why", "p", "a"],
        &["graph", "p"],
        &["validate", "p"],
        &["inspect", "x.jsonl"],
        &["query", "x.jsonl", "SELECT text FROM self"],
        &["query", "x.jsonl", "SELECT text FROM self", "--format", "json"],
        &["stages"],
        &["stages", "ingest"],
        &["schema"],
        &["completions", "bash"],
    ];
    for args in commands {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let output = p.command(args).stdout(full).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
        assert!(stderr.contains("cannot write to the standard output: No space"), "{args:?}: {stderr}");
        let words = args.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ");
        if cfg!(target_os = "linux") {
            let line = format!("exec '{}' {words} >&-", env!("CARGO_BIN_EXE_tinylm"));
            let mut shell = std::process::Command::new("sh");
            let output = shell.args(["-c", &line]).current_dir(p.path("")).output().unwrap();
            assert_eq!(output.status.code(), Some(1), "{args:?} with stdout closed");
        }
        // A reader that has enough is no failure.
        let line = format!("{{ '{}' {words}; echo $? >&2; }} | true", env!("CARGO_BIN_EXE_tinylm"));
        let mut shell = std::process::Command::new("sh");
        let output = shell.args(["-c", &line]).current_dir(p.path("")).output().unwrap();
        assert_eq!(String::from_utf8(output.stderr).unwrap(), "0\n", "{args:?}");
    }
}

#[test]
fn a_program_stays_executable_and_its_bit_is_part_of_the_key() {
    let text = "
stages:
  make: { kind: command, outputs: { tool: file, data: file }, params: { command: [sh, -c, 'printf \"#!/bin/sh\\necho ran\\n\" | tee ${outputs.tool} > ${outputs.data}; chmod +x ${outputs.tool}'] } }
  use: { kind: command, inputs: { tool: make.tool }, outputs: { o: file }, params: { command: [sh, -c, '${inputs.tool} > ${outputs.o}'] } }
  own: { kind: command, inputs: { s: data/own.sh }, outputs: { o: file }, params: { command: [sh, -c, '${inputs.s} > ${outputs.o}'] } }
  direct: { kind: command, inputs: { s: data/own.sh }, outputs: { o: files }, params: { command: ['${inputs.s}', '${outputs.o}/x'] } }
";
    let p = Project::new(text);
    p.write("data/own.sh", "#!/bin/sh\necho own $1\n[ -z \"$1\" ] || echo x > $1\n");
    let set_mode = |mode| {
        std::fs::set_permissions(p.path("data/own.sh"), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    set_mode(0o755);
    let summary = p.run(&[]);
    assert_eq!(p.read("artifacts/p/use/o/o"), "ran\n");
    assert_eq!(p.read("artifacts/p/own/o/o"), "own\n");
    assert_eq!(p.read("artifacts/p/direct/o/x"), "x\n");
    // One content, two artifacts.
    let outputs = &stage(&summary, "make")["outputs"];
    assert_ne!(outputs["tool"], outputs["data"]);
    let bit =
        |port: &str| p.path(&format!("artifacts/p/make/{port}/{port}")).metadata().unwrap().mode() & 0o111;
    assert!(bit("tool") != 0 && bit("data") == 0);
    assert_eq!(statuses(&p.run(&[])), ["make=cached", "use=cached", "own=cached", "direct=cached"]);
    set_mode(0o644);
    let plan = p.plan(&[]);
    assert_eq!(stage(&plan, "own")["verdict"], "run");
    assert_eq!(stage(&plan, "own")["reason"]["detail"], "input s: own.sh changed");
    set_mode(0o700);
    assert_eq!(statuses(&p.run(&[])), ["make=cached", "use=cached", "own=cached", "direct=cached"]);
}

#[test]
fn names_are_kept_as_they_are_or_refused() {
    let text =
        "touch ${outputs.o}/a; mkdir ${outputs.o}/d; echo 1 > ${outputs.o}/d/b; echo 2 > ${outputs.o}/d\\\\b";
    let p = script("{}", "files", text);
    p.run(&[]);
    assert_eq!((p.read("artifacts/p/a/o/d/b"), p.read("artifacts/p/a/o/d\\b")), ("1\n".into(), "2\n".into()));
    let p = script("{}", "files", "touch \"${outputs.o}/$(printf 'caf\\351')\"");
    assert!(error(&p).contains("has a file whose name is not UTF-8: `caf\\xe9`"));
    let p = script("{ t: ./data }", "files", "cp ${inputs.t} ${outputs.o}");
    p.write("data/a\\b.txt", "x\n");
    p.run(&[]);
    assert_eq!(p.read("artifacts/p/a/o/a\\b.txt"), "x\n");
    use std::os::unix::ffi::OsStrExt;
    let name = std::ffi::OsStr::from_bytes(b"caf\xe9.txt");
    std::fs::write(p.path("data").join(name), "x\n").unwrap();
    let ran = p.tinylm(&["plan", "p"]);
    assert!(ran.stderr.contains("caf\\xe9.txt` is not UTF-8"), "{}", ran.stderr);
}

#[test]
fn an_empty_folder_is_said() {
    let p =
        script("{}", "files", "mkdir -p ${outputs.o}/kept ${outputs.o}/empty/er; touch ${outputs.o}/kept/x");
    let summary = p.run(&[]);
    assert!(log(&p, &summary).contains("output `o`: empty folders are not kept: empty/er"));
}
