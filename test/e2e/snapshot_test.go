package e2e

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	v1 "github.com/roosthq/roost/api/gen/v1"
	"github.com/roosthq/roost/test/trials"
)

// facts of a sandbox that no other has.
const facts = `hostname; cat /etc/machine-id /run/roost/boot-marker; head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n'; echo`

// snapshot takes one and returns what the API says of it.
func (r *roost) snapshot(id string, args ...string) v1.Template {
	r.t.Helper()
	var s v1.Template
	require.NoError(r.t, json.Unmarshal([]byte(r.run(append([]string{"snapshot", "create", id, "--json"}, args...)...)), &s))
	return s
}

// fork makes n of a sandbox.
func (r *roost) fork(id string, n int) v1.ForkResult {
	r.t.Helper()
	var f v1.ForkResult
	require.NoError(r.t, json.Unmarshal([]byte(r.run("fork", id, "-n", fmt.Sprint(n), "--json")), &f))
	require.Len(r.t, f.Sandboxes, n)
	return f
}

// small is a sandbox with content.
func (r *roost) small() (string, content) {
	r.t.Helper()
	id := r.run("create", "--memory-mb", "256", "--timeout", "0")
	return id, r.fill(id)
}

// TestSnapshot: of a running sandbox, which runs on, of a paused one, and of a fork of a resumed
// one that was made from a snapshot; what starts from each holds what its source held.
func TestSnapshot(t *testing.T) {
	onEach(t, func(t *testing.T, k kind) {
		r := start(t, k.flags()...)
		id, want := r.small()
		first := r.snapshot(id, "--name", "first")
		require.Equal(t, "first", first.Name)
		require.Positive(t, *first.FrozenMs, "it stood still, and says for how long")
		require.Positive(t, first.SizeBytes)
		require.Equal(t, running, r.info(id).State)
		r.holds(id, want)
		r.sh(id, "echo later >/root/later")
		a := r.run("create", "first")
		r.holds(a, want)
		require.NotZero(t, r.try("exec", "--user", "root", a, "--", "cat", "/root/later").code, "it is of another moment")
		own := strings.Fields(r.sh(a, facts))
		require.Equal(t, a, own[0])
		require.NotSubset(t, strings.Fields(r.sh(id, facts)), own[1:2])

		r.run("pause", id)
		second := r.snapshot(id, "--name", "second")
		require.Zero(t, zero(second.FrozenMs))
		require.Equal(t, paused, r.info(id).State)
		b := r.run("create", "second")
		r.holds(b, want)
		require.Equal(t, "later", r.sh(b, "cat /root/later"))

		r.run("pause", a)
		r.run("resume", a)
		fork := r.fork(a, 1).Sandboxes[0].Id
		r.snapshot(fork, "--name", "third")
		r.run("rm", a, fork)
		r.run("snapshot", "rm", "first")
		c := r.run("create", "third")
		r.holds(c, want)
		r.run("pause", c)
		r.run("resume", c)
		r.holds(c, want)
		require.Contains(t, r.run("snapshot", "tree"), "third")
		r.run("snapshot", "rm", "second", "third")
		r.run("rm", b, c)
		r.run("resume", id)
		r.holds(id, want)
		r.sound()
	})
}

func zero(ms *float64) float64 {
	if ms == nil {
		return 0
	}
	return *ms
}

// TestDeletedInAnyOrder: a source, its snapshot and what was made from that: none needs another.
func TestDeletedInAnyOrder(t *testing.T) {
	onSome(t, func(t *testing.T, k kind) {
		r := start(t, k.flags()...)
		orders := [][]string{{"source", "snapshot", "child"}, {"snapshot", "source", "child"}, {"source", "child", "snapshot"},
			{"child", "source", "snapshot"}, {"child", "snapshot", "source"}, {"snapshot", "child", "source"}}
		s := trials.Begin(t, "deleted in any order", k.name, 2, len(orders))
		s.Exactly(min(s.Wanted(), len(orders)))
		s.Each(func(t *testing.T, n int) {
			r := r.as(t)
			source, want := r.small()
			r.snapshot(source, "--name", "kept")
			child := r.run("create", "kept")
			left := map[string]func(){"source": func() { r.holds(source, want) }, "child": func() { r.cycles(child, want) }, "snapshot": func() {
				id := r.run("create", "kept")
				r.holds(id, want)
				r.run("rm", id)
			}}
			for _, what := range orders[n] {
				if what == "snapshot" {
					r.run("snapshot", "rm", "kept")
				} else {
					r.run("rm", map[string]string{"source": source, "child": child}[what])
				}
				delete(left, what)
				for _, check := range left {
					check()
				}
			}
			r.sound()
			require.Zero(t, r.diskUsed("sandboxes/.snapshots")+r.diskUsed("sandboxes/.trash"))
		})
	})
}

// cycles pauses and resumes, and looks.
func (r *roost) cycles(id string, want content) {
	r.t.Helper()
	r.run("pause", id)
	r.run("resume", id)
	r.holds(id, want)
}

// diskUsed is what files below a folder of the installation take, in KiB; folders are not counted.
func (r *roost) diskUsed(folder string) int {
	r.t.Helper()
	out, err := exec.Command("sh", "-c", "find '"+r.data+"/"+folder+"' -type f ! -name .reserve -printf '%k\n' 2>/dev/null | awk '{n+=$1} END {print n+0}'").Output()
	require.NoError(r.t, err)
	var n int
	_, err = fmt.Sscan(string(out), &n)
	require.NoError(r.t, err)
	return n
}

// TestClientLeaves: who asked for a snapshot and left has one that is whole, or none.
func TestClientLeaves(t *testing.T) {
	t.Parallel()
	r := start(t, kinds[0].flags()...)
	id, want := r.small()
	for _, point := range []string{"sandbox.snapshot.frozen", "sandbox.snapshot.thawed", "sandbox.snapshot.published"} {
		r.arm(point, "hold")
		client := r.background("snapshot", "create", id, "--name", "left")
		r.held(point)
		require.NoError(t, client.Process.Signal(unix.SIGKILL))
		_ = client.Wait()
		r.disarm(point)
		r.settles(id, running)
		r.holds(id, want)
		r.sound()
		if _, found := r.snapshots()["left"]; found {
			copied := r.run("create", "left")
			r.holds(copied, want)
			r.run("rm", copied)
			r.run("snapshot", "rm", "left")
		}
		r.run("snapshot", "create", id, "--name", "left")
		r.run("snapshot", "rm", "left")
	}
	r.sound()
}

// background starts a command line.
func (r *roost) background(args ...string) *exec.Cmd {
	r.t.Helper()
	cmd := exec.Command(roostBin, args...)
	cmd.Env = append(cmd.Environ(), "ROOST_DATA="+r.data, "XDG_CONFIG_HOME="+r.data)
	require.NoError(r.t, cmd.Start())
	return cmd
}

// held waits until a step is held.
func (r *roost) held(point string) {
	r.t.Helper()
	eventually(r.t, time.Minute, point+" is reached", func() bool { return exists(r.data + "/armed/" + point + ".held") })
}
