//! Random lives: whatever clients ask and whatever happens, what is told makes sense.

#![cfg(test)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use task::{
    Accepted, Action, Effect, Event, ExecId, Exit, Kind, Notice, Operation, ProcessName, Request,
    Scope, Status, Task, WaiterId,
};

const INIT: i32 = 1;

/// What happens next.
#[derive(Debug, Clone)]
enum Step {
    Ask(Action, Target),
    /// The operation of that number among those under way ends.
    Ends(usize, Outcome),
    /// The living process of that number ends.
    Dies(usize),
    /// A process that is not of this task ends.
    StrangerDies,
    /// An outcome comes that nothing waits for.
    StrangeOutcome(Action, Target),
    Overdue,
    Forget(u64),
}

/// Init, or one of three execs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Init,
    Exec(u8),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Done,
    Failed,
}

impl Target {
    fn id(self) -> ExecId {
        let number = match self {
            Self::Init => 0,
            Self::Exec(number) => number,
        };
        ExecId::new(&format!("exec-{number}")).unwrap()
    }

    fn name(self) -> ProcessName {
        match self {
            Self::Init => ProcessName::Init,
            Self::Exec(_) => ProcessName::Exec(self.id()),
        }
    }
}

fn target() -> impl Strategy<Value = Target> {
    prop_oneof![Just(Target::Init), (0..3u8).prop_map(Target::Exec)]
}

fn ask() -> impl Strategy<Value = Action> {
    use Action::{
        Checkpoint, CloseIo, Delete, Exec, Kill, Pause, Pids, Resize, Resume, Start, State, Stats,
        Update, Wait,
    };
    prop_oneof![
        4 => Just(Start),
        4 => Just(Exec),
        2 => Just(Delete),
        2 => Just(Wait),
        1 => prop::sample::select(vec![
            Kill, Pause, Resume, Resize, CloseIo, Update, Checkpoint, State, Pids, Stats,
        ]),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let outcome = prop_oneof![3 => Just(Outcome::Done), 1 => Just(Outcome::Failed)];
    prop_oneof![
        8 => (ask(), target()).prop_map(|(ask, target)| Step::Ask(ask, target)),
        6 => (any::<usize>(), outcome).prop_map(|(number, outcome)| Step::Ends(number, outcome)),
        3 => any::<usize>().prop_map(Step::Dies),
        1 => Just(Step::StrangerDies),
        1 => (ask(), target()).prop_map(|(ask, target)| Step::StrangeOutcome(ask, target)),
        1 => Just(Step::Overdue),
        1 => (0..20u64).prop_map(Step::Forget),
    ]
}

/// The owner of a task, and a world in which processes live and die.
struct World {
    task: Task,
    /// Seconds since the beginning.
    now: u64,
    under_way: Vec<Operation>,
    alive: BTreeMap<i32, ProcessName>,
    next_pid: i32,
    next_waiter: u64,
    waiting: BTreeSet<WaiterId>,
    told: Told,
}

/// What clients know from the events.
#[derive(Default)]
struct Told {
    events: Vec<Event>,
    started: bool,
    exited: Option<Exit>,
    deleted: bool,
    /// Added and not seen to be deleted: whether started, whether ended.
    execs: BTreeMap<ExecId, (Option<i32>, Option<Exit>)>,
    overdue: bool,
}

impl Told {
    fn hear(&mut self, event: Event) {
        assert!(!self.deleted, "{event:?} after the end of all");
        match &event {
            Event::Created { .. } => assert!(self.events.is_empty()),
            Event::Started { pid } => {
                assert_eq!(*pid, INIT);
                assert!(!self.started && self.exited.is_none());
                self.started = true;
            }
            Event::ExecAdded { id } => {
                assert!(self.started && self.exited.is_none());
                // An id is used again only after its exec was deleted.
                self.execs.insert(id.clone(), (None, None));
            }
            Event::ExecStarted { id, pid } => {
                assert!(self.exited.is_none() || self.overdue);
                let exec = self.execs.get_mut(id).expect("added before");
                assert_eq!(exec.0.replace(*pid), None, "{id} starts once");
            }
            Event::Paused | Event::Resumed => assert!(self.started && self.exited.is_none()),
            Event::Exited { process, pid, exit } => self.hear_exit(process, *pid, *exit),
            Event::Deleted { exit, .. } => {
                assert_eq!(self.exited, Some(*exit));
                self.deleted = true;
            }
        }
        self.events.push(event);
    }

    fn hear_exit(&mut self, process: &ProcessName, pid: i32, exit: Exit) {
        match process {
            ProcessName::Init => {
                assert_eq!(pid, INIT);
                assert_eq!(self.exited.replace(exit), None, "init ends once");
                let runs =
                    |exec: &(Option<i32>, Option<Exit>)| exec.0.is_some() && exec.1.is_none();
                assert!(
                    self.overdue || !self.execs.values().any(runs),
                    "init is last"
                );
            }
            ProcessName::Exec(id) => {
                let exec = self.execs.get_mut(id).expect("added before");
                assert_eq!(exec.0, Some(pid), "{id} was started");
                assert_eq!(exec.1.replace(exit), None, "{id} ends once");
            }
        }
    }
}

impl World {
    fn new() -> Self {
        let (task, created) = Task::new(INIT);
        let mut told = Told::default();
        told.hear(created);
        Self {
            task,
            now: 0,
            under_way: Vec::new(),
            alive: BTreeMap::from([(INIT, ProcessName::Init)]),
            next_pid: INIT + 1,
            next_waiter: 0,
            waiting: BTreeSet::new(),
            told,
        }
    }

    fn at(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(self.now)
    }

    fn take(&mut self, step: &Step) {
        self.now += 1;
        match step {
            Step::Ask(ask, target) => self.ask(*ask, *target),
            Step::Ends(number, outcome) => self.end(*number, *outcome),
            Step::Dies(number) => self.die(*number),
            Step::StrangerDies => {
                let exit = self.exit();
                assert_eq!(self.task.notice(Notice::Exited { pid: 9999, exit }), []);
            }
            Step::StrangeOutcome(ask, target) => self.hear_strange_outcome(*ask, target.name()),
            Step::Overdue => {
                // It has a meaning only when init has ended.
                self.told.overdue |= !self.alive.contains_key(&INIT);
                let effects = self.task.notice(Notice::RestOverdue);
                self.act(effects);
            }
            Step::Forget(waiter) => {
                self.task.forget(WaiterId(*waiter));
                self.waiting.remove(&WaiterId(*waiter));
            }
        }
    }

    fn ask(&mut self, ask: Action, target: Target) {
        let name = target.name();
        let request = match ask {
            Action::Start => Request::Start(name.clone()),
            Action::Exec => Request::Exec(target.id()),
            Action::Kill => Request::Kill {
                process: name.clone(),
                signal: 15,
                scope: Scope::All,
            },
            Action::Pause => Request::Pause,
            Action::Resume => Request::Resume,
            Action::Resize => Request::Resize(name.clone()),
            Action::CloseIo => Request::CloseIo(name.clone()),
            Action::Update => Request::Update,
            Action::Checkpoint => Request::Checkpoint,
            Action::Delete => Request::Delete(name.clone()),
            Action::Wait => {
                self.next_waiter += 1;
                Request::Wait {
                    process: name.clone(),
                    waiter: WaiterId(self.next_waiter),
                }
            }
            Action::State => Request::State(name.clone()),
            Action::Pids => Request::Pids,
            Action::Stats => Request::Stats,
        };
        let answer = self.task.request(&request);
        if self.told.deleted {
            assert_eq!(answer.unwrap_err().kind, Kind::NotFound);
            return;
        }
        match answer {
            Ok(Accepted::Begin(operation)) => {
                assert!(!self.under_way.contains(&operation), "{operation:?} twice");
                self.under_way.push(operation);
            }
            Ok(Accepted::Added(event)) => self.told.hear(event),
            Ok(Accepted::Waiting) => {
                self.waiting.insert(WaiterId(self.next_waiter));
            }
            Ok(Accepted::Exited(exit)) => assert_eq!(self.known_exit(&name).unwrap_or(exit), exit),
            Ok(Accepted::State(report)) => {
                let exit = self.known_exit(&name);
                if exit.is_some() {
                    assert_eq!((report.exit, report.status), (exit, Status::Stopped));
                }
            }
            Ok(Accepted::Do) => {}
            Err(refusal) => {
                let always = matches!(ask, Action::Pids | Action::Stats);
                let of_init = matches!(ask, Action::State | Action::Wait | Action::CloseIo);
                assert!(
                    !(always || of_init && target == Target::Init),
                    "{ask:?}: {refusal}"
                );
            }
        }
        if matches!(ask, Action::Kill) && self.known_exit(&name).is_some() {
            assert_eq!(
                self.task.request(&request).unwrap_err().kind,
                Kind::NotFound
            );
        }
    }

    fn hear_strange_outcome(&mut self, ask: Action, process: ProcessName) {
        let (operation, notice) = match ask {
            Action::Start => (
                Operation::Start(process.clone()),
                Notice::Started { process, pid: 9999 },
            ),
            Action::Pause => (Operation::Pause, Notice::Paused),
            Action::Resume => (Operation::Resume, Notice::Resumed),
            _ => (
                Operation::Delete(process.clone()),
                Notice::Deleted {
                    process,
                    at: self.at(),
                },
            ),
        };
        if !self.under_way.contains(&operation) {
            assert_eq!(self.task.notice(notice), [], "{operation:?}");
        }
    }

    fn known_exit(&self, name: &ProcessName) -> Option<Exit> {
        match name {
            ProcessName::Init => self.told.exited,
            ProcessName::Exec(id) => self.told.execs.get(id).and_then(|exec| exec.1),
        }
    }

    fn end(&mut self, number: usize, outcome: Outcome) {
        if self.under_way.is_empty() {
            return;
        }
        let operation = self.under_way.swap_remove(number % self.under_way.len());
        let at = self.at();
        let notice = match (operation, outcome) {
            (Operation::Start(process), Outcome::Done) => {
                let pid = self.run(&process);
                Notice::Started { process, pid }
            }
            (Operation::Start(process), Outcome::Failed) => Notice::StartFailed { process, at },
            (Operation::Pause, Outcome::Done) => Notice::Paused,
            (Operation::Pause, Outcome::Failed) => Notice::PauseFailed,
            (Operation::Resume, Outcome::Done) => Notice::Resumed,
            (Operation::Resume, Outcome::Failed) => Notice::ResumeFailed,
            (Operation::Delete(process), Outcome::Done) => {
                if let ProcessName::Exec(id) = &process {
                    self.told.execs.remove(id);
                }
                Notice::Deleted { process, at }
            }
            (Operation::Delete(process), Outcome::Failed) => Notice::DeleteFailed { process },
        };
        let effects = self.task.notice(notice);
        self.act(effects);
    }

    /// An exec gets a process, under the pid of one that has ended if there is one.
    fn run(&mut self, process: &ProcessName) -> i32 {
        if *process == ProcessName::Init {
            return INIT;
        }
        let used = (INIT + 1..self.next_pid).find(|pid| !self.alive.contains_key(pid));
        let pid = used.unwrap_or(self.next_pid);
        self.next_pid = self.next_pid.max(pid + 1);
        self.alive.insert(pid, process.clone());
        pid
    }

    fn die(&mut self, number: usize) {
        let pids: Vec<_> = self.alive.keys().copied().collect();
        if pids.is_empty() {
            return;
        }
        // Init is the first; most of the time an exec ends, or lives would be short.
        let pid = match pids[number % pids.len()] {
            INIT if !number.is_multiple_of(16) => return,
            pid => pid,
        };
        self.alive.remove(&pid);
        let exit = self.exit();
        let effects = self.task.notice(Notice::Exited { pid, exit });
        self.act(effects);
    }

    fn exit(&self) -> Exit {
        Exit {
            code: u32::try_from(self.now % 256).unwrap(),
            at: self.at(),
        }
    }

    fn act(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Publish(event) => self.told.hear(event),
                Effect::Answer { waiter, .. } => {
                    assert!(self.waiting.remove(&waiter), "{waiter:?} is answered once");
                }
                Effect::StopRest => assert!(!self.alive.contains_key(&INIT)),
            }
        }
    }

    /// Everything under way ends well, everything alive dies, and the task is deleted.
    fn finish(&mut self) {
        for _ in 0..4 {
            self.now += 1;
            while !self.under_way.is_empty() {
                self.end(0, Outcome::Done);
            }
            while !self.alive.is_empty() {
                self.die(0);
            }
            self.ask(Action::Delete, Target::Init);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn any_life_is_told_in_order_and_ends(steps in prop::collection::vec(step(), 0..120)) {
        let mut world = World::new();
        for step in &steps {
            world.take(step);
        }
        world.finish();
        prop_assert_eq!(&world.waiting, &BTreeSet::new());
        prop_assert!(world.told.exited.is_some(), "its end is told");
        let last = world.told.events.last();
        prop_assert!(matches!(last, Some(Event::Deleted { .. })), "{last:?} is last");
    }
}
