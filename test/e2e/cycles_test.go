package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/roosthq/roost/test/trials"
)

// TestManyCycles: sandboxes are paused and resumed, by hand and by their idle timeout; each time
// files are written in memory and on the disk, and all that were ever written are hashed.
func TestManyCycles(t *testing.T) {
	onSome(t, func(t *testing.T, k kind) {
		for _, by := range []string{"hand", "timeout"} {
			t.Run(by, func(t *testing.T) {
				r := start(t, k.flags()...)
				const sandboxes = 5
				s := trials.Begin(t, "pause and resume by "+by, k.name, 2, 20*sandboxes)
				var ids []string
				for range min(sandboxes, s.Wanted()) {
					ids = append(ids, r.run("create", "--memory-mb", "256", "--timeout", "0"))
				}
				sums := map[string]map[string]string{}
				s.Each(func(t *testing.T, n int) {
					r := r.as(t)
					id := ids[n%len(ids)]
					if sums[id] == nil {
						sums[id] = map[string]string{}
					}
					r.writeMore(id, sums[id])
					r.pauseBy(id, by)
					r.run("resume", id)
					r.allSums(id, sums[id])
				})
				r.sound()
			})
		}
	})
}

// writeMore writes a file in memory and one on the disk.
func (r *roost) writeMore(id string, sums map[string]string) {
	r.t.Helper()
	n := len(sums) / 2
	for _, line := range strings.Split(r.sh(id, fmt.Sprintf(`for d in /root /dev/shm; do head -c 1000000 /dev/urandom >$d/f%d; sha256sum $d/f%d; done`, n, n)), "\n") {
		fields := strings.Fields(line)
		require.Len(r.t, fields, 2)
		sums[fields[1]] = fields[0]
	}
}

func (r *roost) pauseBy(id, by string) {
	r.t.Helper()
	if by == "hand" {
		r.run("pause", id)
		return
	}
	r.run("timeout", id, "1")
	eventually(r.t, time.Minute, "it is idle and pauses", func() bool { return r.info(id).State == paused })
	require.Contains(r.t, *r.info(id).Reason, "idle")
	r.run("timeout", id, "0")
}

// allSums reads every file from where it is.
func (r *roost) allSums(id string, sums map[string]string) {
	r.t.Helper()
	out := r.sh(id, "sync; test ! -w /proc/sys/vm/drop_caches || echo 3 >/proc/sys/vm/drop_caches; sha256sum /root/f* /dev/shm/f*")
	lines := strings.Split(out, "\n")
	require.Len(r.t, lines, len(sums))
	for _, line := range lines {
		fields := strings.Fields(line)
		require.Len(r.t, fields, 2)
		require.Equal(r.t, sums[fields[1]], fields[0], fields[1])
	}
}

// TestAdopted: the agent is killed with sandboxes running; the next one has them all, each once.
func TestAdopted(t *testing.T) {
	onSome(t, func(t *testing.T, k kind) {
		r := start(t, k.flags()...)
		s := trials.Begin(t, "agent killed with 10 running", k.name, 2, 50)
		count := 3
		if trials.Soaking() {
			count = 10
		}
		held := map[string]content{}
		for range count {
			id, want := r.small()
			held[id] = want
		}
		s.Each(func(t *testing.T, _ int) {
			r := r.as(t)
			time.Sleep(time.Duration(s.Rand.IntN(300)) * time.Millisecond) // whatever it does by itself
			r.kill()
			r.up()
			for id, want := range held {
				require.Equal(t, running, r.info(id).State)
				r.holds(id, want)
			}
			require.Empty(t, r.misrun(r.journals()))
		})
		r.sound()
	})
}

// TestForkMany: sixteen of one that runs, all of which answer.
func TestForkMany(t *testing.T) {
	onSome(t, func(t *testing.T, k kind) {
		r := start(t, k.flags()...)
		id, want := r.small()
		n := 4
		if trials.Soaking() {
			n = 16
		}
		s := trials.Begin(t, "forks of one that runs", k.name, n, n)
		s.Exactly(n)
		singles := time.Now()
		for range n {
			r.run("rm", r.run("create", "--memory-mb", "256"))
		}
		single := time.Since(singles)
		began := time.Now()
		forked := r.fork(id, n)
		took := time.Since(began)
		s.Figure("frozen", "%.0f ms", forked.FrozenMs)
		s.Figure("wall ÷ as many creates (and deletes)", "%.2f (%.2f s ÷ %.2f s)", took.Seconds()/single.Seconds(), took.Seconds(), single.Seconds())
		group := errgroup.Group{}
		group.SetLimit(4)
		for _, f := range forked.Sandboxes {
			group.Go(func() error {
				res := r.try("exec", f.Id, "--", "hostname")
				if strings.TrimSpace(res.stdout) != f.Id {
					return fmt.Errorf("fork %s answers %q: %s", f.Id, res.stdout, res.stderr)
				}
				return nil
			})
		}
		require.NoError(t, group.Wait())
		s.Count(n, false)
		for _, f := range forked.Sandboxes {
			r.run("rm", f.Id)
		}
		r.holds(id, want)
		r.sound()
	})
}
