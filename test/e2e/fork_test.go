package e2e

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/test/trials"
)

// diary is a program that writes a random number and the time, and the time again by the clock
// that never goes back, without a pause in between.
const diary = `cat >/root/diary.py <<'EOF'
import os, time
with open("/dev/shm/diary", "w", buffering=1) as f:
    while True:
        f.write(f"{os.getrandom(16).hex()} {time.time():.6f} {time.monotonic():.6f}\n")
        time.sleep(0.002)
EOF
setsid python3 /root/diary.py >/dev/null 2>&1 </dev/null &
while [ ! -s /dev/shm/diary ]; do sleep 0.05; done`

// clockLimit, in seconds, is how far the clock of what was restored may be off. A machine that runs all
// tests at once may take longer to tell a guest the time; a clock that was not set is off by more.
func clockLimit() float64 {
	if trials.Soaking() {
		return 0.5
	}
	return 0.75 * age.Seconds()
}

// TestFork: forks have the memory of their source and an identity of their own, nothing random is
// repeated, and no program ever sees a stale time.
func TestFork(t *testing.T) {
	onEach(t, func(t *testing.T, k kind) {
		r := start(t, k.flags()...)
		id, want := r.small()
		r.sh(id, diary)
		const each = 4
		s := trials.Begin(t, "forked: no repeat, no stale time", k.name, 2*each, 100)
		slowest, seen := 0.0, map[string]string{}
		for round := 0; s.More(); round++ {
			t.Run(fmt.Sprint(round), func(t *testing.T) {
				r := r.as(t)
				if round%2 == 1 { // of a memory that is old
					r.run("pause", id)
					time.Sleep(age)
				}
				slowest = max(slowest, r.forkApart(id, each, want, seen))
				if round%2 == 1 {
					r.run("resume", id)
				}
				r.holds(id, want)
			})
			s.Count(each, t.Failed())
		}
		s.Figure("frozen at most", "%.0f ms", slowest)
		r.ownIdentity(id, seen)
		r.sound()
	})
}

// age is how old a memory is made; it must be more than a clock may be off.
const age = 2 * time.Second

// forkApart forks, proves that each is its own, and removes them. It returns how long the source
// stood still, in milliseconds.
func (r *roost) forkApart(id string, n int, want content, seen map[string]string) float64 {
	r.t.Helper()
	began := now()
	forked := r.fork(id, n)
	diaries := map[string][]entry{}
	for _, f := range forked.Sandboxes {
		require.Equal(r.t, id, *f.ForkedFrom)
		r.holds(f.Id, want)
		r.ownIdentity(f.Id, seen)
		diaries[f.Id] = r.diary(f.Id)
	}
	ownDiaries(r.t, diaries, began, seen)
	for _, f := range forked.Sandboxes {
		r.run("rm", f.Id)
	}
	return forked.FrozenMs
}

func now() float64 { return float64(time.Now().UnixMicro()) / 1e6 }

// ownIdentity: nothing that names a sandbox, and nothing random, was seen before.
func (r *roost) ownIdentity(id string, seen map[string]string) {
	r.t.Helper()
	before := now()
	out := strings.Fields(r.sh(id, facts+"; date +%s.%N"))
	require.Len(r.t, out, 5)
	require.Equal(r.t, id, out[0], "the hostname is the id")
	for _, fact := range out[1:4] {
		require.Empty(r.t, seen[fact], "%s of %s was seen before", fact, id)
		seen[fact] = id
	}
	clock, err := strconv.ParseFloat(out[4], 64)
	require.NoError(r.t, err)
	require.Greater(r.t, clock, before-clockLimit())
	require.Less(r.t, clock, now()+clockLimit())
}

// entry of a diary.
type entry struct {
	random        string
	at, monotonic float64
}

func (r *roost) diary(id string) []entry {
	r.t.Helper()
	var out []entry
	for line := range strings.Lines(r.sh(id, "tail -n 30000 /dev/shm/diary")) {
		var e entry
		if _, err := fmt.Sscan(line, &e.random, &e.at, &e.monotonic); err == nil && len(e.random) == 32 {
			out = append(out, e) // another is cut off by tail, or is being written
		}
	}
	require.NotEmpty(r.t, out)
	return out
}

// ownDiaries: what forks have in common is their source's. What each wrote by itself is random, is
// not older than the fork, and goes forward by both clocks.
func ownDiaries(t *testing.T, diaries map[string][]entry, began float64, seen map[string]string) {
	t.Helper()
	common, shared := map[entry]int{}, 0.0
	for _, entries := range diaries {
		shared = max(shared, entries[0].at) // before it, others were cut off
		for _, e := range entries {
			common[e]++
		}
	}
	require.Less(t, shared, began, "they reach back into what they have in common")
	for id, entries := range diaries {
		own := 0
		for i, e := range entries {
			if i > 0 {
				require.GreaterOrEqual(t, e.at, entries[i-1].at, "%s: the clock went back", id)
				require.GreaterOrEqual(t, e.monotonic, entries[i-1].monotonic, "%s: the monotonic clock went back", id)
			}
			if common[e] > 1 || e.at <= shared {
				continue
			}
			if own++; own == 1 {
				continue // its number may have been drawn before the fork, and its time read after it
			}
			require.Empty(t, seen[e.random], "a random number came twice: %v of %s", e, id)
			seen[e.random] = id
			require.Greater(t, e.at, began-clockLimit(), "%s saw a stale time", id)
			require.Less(t, e.at, now()+clockLimit(), "%s saw a time to come", id)
		}
		require.Greater(t, own, 1, "%s writes on", id)
	}
}
