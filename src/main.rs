//! The program: everything is in [`tinylm::cli`].

fn main() -> std::process::ExitCode {
    tinylm::cli::main()
}
