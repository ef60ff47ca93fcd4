package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/bench/harness"
)

const (
	idleCount = 50
	// edge is how many creates at the beginning and at the end are compared.
	edge = 10
	// atOnce is how many are made at the same time.
	atOnce = 4
)

// idle50 makes 50 sandboxes that do nothing, one after the other and then four at once: how fast,
// whether the last creates take longer than the first, and what each has in memory.
func (s *server) idle50(ctx context.Context, pairs int) ([]harness.Result, error) {
	const name = "50 idle sandboxes on gVisor: "
	a, b := harness.Halves(s.idleRound)
	return harness.RunMany(ctx, harness.Many{
		Parts: []harness.Part{
			{Name: name + "median of the last ten creates ÷ the first ten", Unit: harness.Seconds},
			{Name: name + "seconds a create, one after the other ÷ four at once", Unit: harness.Seconds},
			{Name: name + "private memory of the 50th ÷ the first", Unit: harness.Bytes},
			{Name: name + "memory of the 50th with its share of what is shared (PSS) ÷ private", Unit: harness.Bytes},
		},
		A: a, B: b, Pairs: pairs, Warmup: -1, NoControl: true, Progress: progress,
	})
}

// idleRound gives A and B of idle50's parts.
func (s *server) idleRound(ctx context.Context) (a, b []float64, err error) {
	ids, took, err := s.createMany(ctx, 1)
	defer func() { err = errors.Join(err, s.deleteMany(ctx, ids)) }()
	if err != nil {
		return nil, nil, err
	}
	first, err := s.memoryOf(ids[0])
	if err != nil {
		return nil, nil, err
	}
	last, err := s.memoryOf(ids[len(ids)-1])
	if err != nil {
		return nil, nil, err
	}
	last.print()
	together, err := s.createTogether(ctx)
	if err != nil {
		return nil, nil, err
	}
	var alone float64
	for _, t := range took {
		alone += t / idleCount
	}
	a = []float64{harness.Median(took[idleCount-edge:]), alone, last.private(), last.pss}
	b = []float64{harness.Median(took[:edge]), together, first.private(), last.private()}
	return a, b, nil
}

// createTogether is the seconds a create when several run at once.
func (s *server) createTogether(ctx context.Context) (float64, error) {
	began := time.Now()
	ids, _, err := s.createMany(ctx, atOnce)
	took := time.Since(began).Seconds() / idleCount
	return took, errors.Join(err, s.deleteMany(ctx, ids))
}

// createMany makes idleCount sandboxes, some at once, and says how long each took.
func (s *server) createMany(ctx context.Context, atOnce int) (ids []string, took []float64, err error) {
	var mu sync.Mutex
	err = many(idleCount, atOnce, func(int) error {
		began := time.Now()
		id, err := s.create(ctx, false)
		mu.Lock()
		defer mu.Unlock()
		if err == nil {
			ids, took = append(ids, id), append(took, time.Since(began).Seconds())
		}
		return err
	})
	return ids, took, err
}

func (s *server) deleteMany(ctx context.Context, ids []string) error {
	return many(len(ids), atOnce, func(i int) error { return s.delete(ctx, ids[i]) })
}

// many calls f for 0 to n-1, some at once; all are called whatever fails.
func many(n, atOnce int, f func(i int) error) error {
	next, failed := make(chan int), make([]error, n)
	var all sync.WaitGroup
	for range atOnce {
		all.Go(func() {
			for i := range next {
				failed[i] = f(i)
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	all.Wait()
	return errors.Join(failed...)
}

// memoryUse is what the processes of a sandbox have in memory.
type memoryUse struct {
	processes int
	// parts are private bytes by kind; pss adds a process's share of what it shares.
	parts map[string]int64
	pss   float64
}

func (m memoryUse) private() float64 { return float64(sum(m.parts)) }

func (m memoryUse) print() {
	fmt.Fprintf(os.Stderr, "\n  the 50th: %d processes, %.1f MiB private, %.1f MiB with its share of what is shared; private is:\n",
		m.processes, m.private()/(1<<20), m.pss/(1<<20))
	printBytes(m.parts)
}

// memoryOf is of all processes of a sandbox's uid.
func (s *server) memoryOf(id string) (memoryUse, error) {
	use := memoryUse{parts: map[string]int64{}}
	j, err := s.journal(id)
	if err != nil {
		return use, err
	}
	pids, err := processesOf(j.UID)
	if err != nil {
		return use, err
	}
	for _, pid := range pids {
		maps, err := mappingsOf(pid)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // ended meanwhile
		}
		if err != nil {
			return use, err
		}
		use.processes++
		role := roleOf(pid)
		for _, m := range maps {
			use.parts[role+": "+m.ofGVisor()] += m.private
			use.pss += float64(m.pss)
		}
	}
	return use, nil
}

// roleOf is a process's part in a gVisor sandbox.
func roleOf(pid int) string {
	raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	switch name, _, _ := strings.Cut(string(raw), "\x00"); name {
	case "runsc-sandbox":
		return "sentry"
	case "runsc-gofer":
		return "gofer"
	default:
		return "processes inside"
	}
}

// ofGVisor names a mapping of a gVisor process by its kind.
func (m mapping) ofGVisor() string {
	switch {
	case m.name == "":
		return "anonymous memory (the Go heap)"
	case strings.Contains(m.name, "runsc-memory"):
		return "memory of what runs inside"
	case strings.HasPrefix(m.name, "["):
		return strings.Trim(m.name, "[]")
	case strings.Contains(m.name, ".erofs"):
		return "the template's files"
	case strings.HasSuffix(m.name, "/runsc"):
		return "runsc itself"
	default:
		return "other files"
	}
}
