package e2e

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	v1 "github.com/roosthq/roost/api/gen/v1"
	"github.com/roosthq/roost/test/trials"
)

// TestKilledAtRandom: kill -9 of the agent at a random moment while every verb is at work on several
// sandboxes. What was acknowledged is there, once, whole; nothing belongs to nobody.
func TestKilledAtRandom(t *testing.T) {
	onSome(t, func(t *testing.T, k kind) {
		r := start(t, k.flags()...)
		s := trials.Begin(t, "killed at a random moment under load", k.name, 3, 200)
		workers := make([]*worker, 4)
		if k.virtual {
			workers = workers[:2]
		}
		for n := range workers {
			workers[n] = &worker{name: fmt.Sprintf("w%d", n), rand: rand.New(rand.NewPCG(s.Seed(), uint64(n)))} //nolint:gosec // to be repeated
		}
		s.Each(func(t *testing.T, _ int) {
			r := r.as(t)
			defer func() {
				if t.Failed() {
					startAnew(workers)
				}
			}()
			work := sync.WaitGroup{}
			for _, w := range workers {
				w.begin(r)
			}
			for _, w := range workers {
				work.Go(func() { w.work(r) })
			}
			time.Sleep(time.Duration(s.Rand.IntN(1500)) * time.Millisecond) // the moment is the subject
			r.kill()
			work.Wait()
			r.up()
			r.sound()
			for _, w := range workers {
				w.check(r)
			}
			tidy(r, workers)
		})
		t.Logf("acknowledged: %v", acknowledged(workers))
	})
}

// startAnew gives up the sandboxes of a trial that failed.
func startAnew(workers []*worker) {
	for _, w := range workers {
		w.id = ""
	}
}

// tidy removes what nobody was told of, or was being removed.
func tidy(r *roost, workers []*worker) {
	r.t.Helper()
	for name := range r.snapshots() {
		r.run("snapshot", "rm", name)
	}
	for id := range r.list() {
		if !slices.ContainsFunc(workers, func(w *worker) bool { return w.id == id }) {
			r.run("rm", id)
		}
	}
	r.sound()
}

// worker does one thing after the other to a sandbox of its own until the server is gone.
type worker struct {
	name string
	rand *rand.Rand
	id   string
	want content
	// state is what was last acknowledged; doing is what was asked for and not answered.
	state v1.SandboxState
	doing string
	// kept is a snapshot that was acknowledged, until its removal is asked for.
	kept  string
	acked map[string]int
}

// verbs are what a worker can ask for.
var verbs = []string{"pause", "pause", "resume", "resume", "snapshot", "from", "fork", "write", "renew"}

func (w *worker) begin(r *roost) {
	r.t.Helper()
	w.doing, w.kept = "", ""
	if w.acked == nil {
		w.acked = map[string]int{}
	}
	if w.id == "" {
		w.id, w.want = r.small()
		w.state = running
	}
}

// work ends when a command fails: the server was killed.
func (w *worker) work(r *roost) {
	for {
		verb := verbs[w.rand.IntN(len(verbs))]
		if (verb == "write" || verb == "pause") && w.state == paused || verb == "resume" && w.state == running {
			continue
		}
		w.doing = verb
		if !w.do(r, verb) {
			return
		}
		w.doing = ""
		w.acked[verb]++
	}
}

func (w *worker) do(r *roost, verb string) bool {
	ok := func(args ...string) (string, bool) {
		res := r.try(args...)
		return strings.TrimSpace(res.stdout), res.code == 0
	}
	all := func(lines ...[]string) bool {
		return !slices.ContainsFunc(lines, func(args []string) bool { _, done := ok(args...); return !done })
	}
	switch verb {
	case "pause":
		return w.becomes(all([]string{"pause", w.id}), paused)
	case "resume":
		return w.becomes(all([]string{"resume", w.id}), running)
	case "snapshot":
		return w.keep(r) && w.drop(r)
	case "from":
		if !w.keep(r) {
			return false
		}
		id, made := ok("create", w.kept)
		return made && w.drop(r) && all([]string{"rm", id})
	case "fork":
		out, forked := ok("fork", w.id, "-n", "2")
		return forked && all(append([]string{"rm"}, strings.Fields(out)...))
	case "write":
		return all([]string{"exec", "--user", "root", w.id, "--", "sh", "-c", "head -c 1000000 /dev/urandom >/root/noise; cp /root/noise /dev/shm/noise"})
	}
	return w.renew(r)
}

func (w *worker) becomes(done bool, state v1.SandboxState) bool {
	if done {
		w.state = state
	}
	return done
}

func (w *worker) keep(r *roost) bool {
	name := fmt.Sprintf("%s-%d", w.name, w.rand.Uint32())
	if r.try("snapshot", "create", w.id, "--name", name).code != 0 {
		return false
	}
	w.kept = name
	return true
}

func (w *worker) drop(r *roost) bool {
	name := w.kept
	w.kept = ""
	return r.try("snapshot", "rm", name).code == 0
}

// renew replaces the worker's sandbox by a fork of it.
func (w *worker) renew(r *roost) bool {
	res := r.try("fork", w.id)
	if res.code != 0 {
		return false
	}
	old := w.id
	w.id, w.state = strings.TrimSpace(res.stdout), running
	return r.try("rm", old).code == 0
}

// check proves that what was acknowledged is there, in the state that was acknowledged or the one
// that was asked for last.
func (w *worker) check(r *roost) {
	r.t.Helper()
	list := r.list()
	require.Contains(r.t, list, w.id, "%s (%s) is lost; under way was %q", w.id, w.state, w.doing)
	if w.kept != "" {
		require.Contains(r.t, r.snapshots(), w.kept, "an acknowledged snapshot is lost")
	}
	may := []v1.SandboxState{w.state}
	switch w.doing {
	case "pause":
		may = append(may, paused)
	case "resume":
		may = append(may, running)
	}
	require.Contains(r.t, may, list[w.id].State, "under way was %q", w.doing)
	w.state = list[w.id].State
	if w.state == paused {
		r.run("resume", w.id)
		w.state = running
	}
	r.holds(w.id, w.want)
}

// acknowledged is what all workers were told was done.
func acknowledged(workers []*worker) map[string]int {
	out := map[string]int{}
	for _, w := range workers {
		for verb, n := range w.acked {
			out[verb] += n
		}
	}
	return out
}
