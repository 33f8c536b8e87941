//! The program as its users meet it: command lines in, exit codes, output and files out.

#[cfg(unix)]
mod browser;
mod commands;
mod comparing;
mod engine;
mod errors;
mod import_export;
mod own_text;
mod pipelines;
mod project;
#[cfg(unix)]
mod resume;
mod serve;
mod shipped;
mod spec;
#[cfg(unix)]
mod states;
mod store;
mod structure;
mod two_stage;
