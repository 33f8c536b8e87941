//! The thread of a loaded model: it continues all requests in one batch, and tells each client what is new.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use super::{ApiError, Metrics};
use crate::base::{Error, Result, machine};
use crate::generate::{self, Continuation, Event, Finish, Request, RequestId, Scheduler, Token};
use crate::model::Model;

/// What happens to the request `of`, counted from 0 among those that were submitted together.
#[derive(Debug)]
pub struct News {
    pub of: usize,
    pub what: What,
}

#[derive(Debug)]
pub enum What {
    Started {
        prompt_tokens: usize,
        cached_tokens: usize,
        cut: usize,
    },
    Piece {
        sample: usize,
        text: String,
        tokens: Vec<Token>,
    },
    /// `end`: the token that ended it.
    Finished {
        sample: usize,
        finish: Finish,
        end: Option<Token>,
    },
    Failed(ApiError),
}

/// The news of requests. Once it is dropped, their slots are free.
pub struct Answer {
    pub news: UnboundedReceiver<News>,
    /// Ready, with an error, once there will be no more of them.
    pub over: oneshot::Receiver<()>,
}

/// Sends news to an [`Answer`], which is over once all clones are dropped.
#[derive(Clone)]
pub struct Teller {
    news: UnboundedSender<News>,
    _over: Arc<oneshot::Sender<()>>,
}

impl Teller {
    /// Nobody listens where sending fails; the next step sees it.
    pub fn tell(&self, of: usize, what: What) {
        let _ = self.news.send(News { of, what });
    }
}

/// What tells, and what hears it.
pub fn answer() -> (Teller, Answer) {
    let ((news, receiver), (sender, over)) = (unbounded_channel(), oneshot::channel());
    (Teller { news, _over: Arc::new(sender) }, Answer { news: receiver, over })
}

/// Limits of an engine.
#[derive(Debug, Clone)]
pub struct Settings {
    pub scheduler: generate::Limits,
    /// Requests that have not begun.
    pub waiting: usize,
    /// From submitting a request to its end.
    pub time: Duration,
}

/// A model's thread, which ends with this value once its last request has ended.
pub struct Engine {
    jobs: Sender<Job>,
    gauges: Arc<Gauges>,
    settings: Settings,
    thread: JoinHandle<()>,
}

/// What goes on.
#[derive(Debug, Default)]
struct Gauges {
    /// Requests that were submitted and have not begun.
    waiting: AtomicUsize,
    /// Sequences in the batch.
    running: AtomicUsize,
}

struct Job {
    request: Request,
    client: Client,
}

struct Client {
    of: usize,
    teller: Teller,
    deadline: Instant,
    /// Whether it is no longer among the waiting.
    begun: bool,
    /// Samples that have not ended.
    left: usize,
}

impl Client {
    /// It is no longer counted among the waiting.
    fn begin(&mut self, gauges: &Gauges) {
        if !std::mem::replace(&mut self.begun, true) {
            gauges.waiting.fetch_sub(1, Relaxed);
        }
    }

    fn tell(&self, what: What) {
        self.teller.tell(self.of, what);
    }

    /// Whether nobody listens.
    fn is_gone(&self) -> bool {
        self.teller.news.is_closed()
    }
}

impl Engine {
    /// Starts the thread. `stop` makes it fail all its requests.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(
        model: Arc<Model>,
        settings: Settings,
        metrics: Arc<Metrics>,
        stop: Arc<AtomicBool>,
    ) -> Result<Self> {
        let (jobs, waiting) = channel();
        let gauges = Arc::new(Gauges::default());
        let scheduler = Scheduler::new(model, machine::threads(), settings.scheduler);
        let mut worker =
            Worker { scheduler, clients: BTreeMap::new(), gauges: gauges.clone(), metrics, stop };
        let thread = thread::Builder::new().name("engine".to_string()).spawn(move || worker.run(&waiting));
        let thread = thread.map_err(|e| Error::input(format!("cannot start a thread: {e}")))?;
        Ok(Engine { jobs, gauges, settings, thread })
    }

    /// Submits requests that are answered together.
    ///
    /// # Errors
    /// 429 when too many wait already.
    pub fn submit(&self, requests: Vec<Request>) -> Result<Answer, ApiError> {
        let (teller, answer) = answer();
        self.reserve(requests.len())?;
        let deadline = Instant::now() + self.settings.time;
        for (of, request) in requests.into_iter().enumerate() {
            let left = request.samples;
            let client = Client { of, teller: teller.clone(), deadline, begun: false, left };
            if self.jobs.send(Job { request, client }).is_err() {
                return Err(Error::bug("the thread of the model has ended").into());
            }
        }
        Ok(answer)
    }

    /// Takes places among the waiting.
    fn reserve(&self, places: usize) -> Result<(), ApiError> {
        let most = self.settings.waiting;
        let taken =
            self.gauges.waiting.fetch_update(Relaxed, Relaxed, |n| Some(n + places).filter(|n| *n <= most));
        taken.map(drop).map_err(|waiting| {
            let what = format!("{waiting} requests wait for this model already: ask again later");
            ApiError { retry_after: Some(1), ..ApiError::new(StatusCode::TOO_MANY_REQUESTS, what) }
        })
    }

    pub fn waiting(&self) -> usize {
        self.gauges.waiting.load(Relaxed)
    }

    pub fn running(&self) -> usize {
        self.gauges.running.load(Relaxed)
    }

    /// Whether its thread panicked: it answers no more.
    pub fn is_dead(&self) -> bool {
        self.thread.is_finished()
    }
}

struct Worker {
    scheduler: Scheduler,
    clients: BTreeMap<RequestId, Client>,
    gauges: Arc<Gauges>,
    metrics: Arc<Metrics>,
    stop: Arc<AtomicBool>,
}

impl Worker {
    /// Works until nobody can submit any more and all has ended.
    fn run(&mut self, jobs: &Receiver<Job>) {
        if catch_unwind(AssertUnwindSafe(|| self.work(jobs))).is_err() {
            self.fail_all(&Error::bug("the model's thread panicked").into());
        }
    }

    fn work(&mut self, jobs: &Receiver<Job>) {
        loop {
            if self.clients.is_empty() {
                let Ok(job) = jobs.recv() else { return };
                self.accept(job);
            }
            while let Ok(job) = jobs.try_recv() {
                self.accept(job);
            }
            self.remove_ended();
            let begun = Instant::now();
            let events = self.scheduler.step();
            self.metrics.step(begun.elapsed());
            // Before anybody hears that a request has ended.
            self.gauges.running.store(self.scheduler.running(), Relaxed);
            events.into_iter().for_each(|event| self.pass_on(event));
        }
    }

    fn accept(&mut self, Job { request, mut client }: Job) {
        match self.scheduler.submit(request) {
            Ok(id) => drop(self.clients.insert(id, client)),
            Err(error) => self.fail(&mut client, error.into()),
        }
    }

    /// Cancels requests that nobody listens to, or that take too long; all, once the server stops.
    fn remove_ended(&mut self) {
        if self.stop.load(Relaxed) {
            let what = "the server stops";
            return self.fail_all(&ApiError::new(StatusCode::SERVICE_UNAVAILABLE, what).code("stopping"));
        }
        let now = Instant::now();
        let ended = self.clients.extract_if(.., |_, client| client.is_gone() || now > client.deadline);
        for (id, mut client) in ended.collect::<Vec<_>>() {
            self.scheduler.cancel(id);
            if client.is_gone() {
                client.begin(&self.gauges);
                self.metrics.cancelled();
            } else {
                self.fail(&mut client, too_long());
            }
        }
    }

    fn fail_all(&mut self, error: &ApiError) {
        for (id, mut client) in std::mem::take(&mut self.clients) {
            self.scheduler.cancel(id);
            self.fail(&mut client, error.clone());
        }
    }

    fn fail(&self, client: &mut Client, error: ApiError) {
        client.begin(&self.gauges);
        client.tell(What::Failed(error));
    }

    fn pass_on(&mut self, event: Event) {
        let (id, what) = match event {
            Event::Started { id, prompt_tokens, cached_tokens, cut } => {
                self.metrics.prompt(prompt_tokens, cached_tokens);
                (id, What::Started { prompt_tokens, cached_tokens, cut })
            }
            Event::Piece { id, sample, text, tokens } => {
                self.metrics.generated(tokens.len());
                (id, What::Piece { sample, text, tokens })
            }
            Event::Finished { id, sample, continuation } => {
                let Continuation { finish, end, .. } = continuation;
                (id, What::Finished { sample, finish, end })
            }
            // What is wrong with a request was found when it was submitted.
            Event::Failed { id, error } => {
                let status = StatusCode::INTERNAL_SERVER_ERROR;
                (id, What::Failed(ApiError::new(status, error.to_string())))
            }
        };
        let Some(client) = self.clients.get_mut(&id) else { return };
        client.begin(&self.gauges);
        match &what {
            What::Finished { .. } => client.left -= 1,
            What::Failed(_) => client.left = 0,
            _ => {}
        }
        client.tell(what);
        if client.left == 0 {
            self.clients.remove(&id);
        }
    }
}

fn too_long() -> ApiError {
    let what = "the answer took longer than this server allows: ask for fewer tokens by `max_tokens`";
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, what).code("timeout")
}
