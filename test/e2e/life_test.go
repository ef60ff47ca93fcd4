package e2e

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	v1 "github.com/roosthq/roost/api/gen/v1"
)

// counter is a process whose memory holds a secret and whose file shows that it runs.
const counter = `cat >/root/count.py <<'EOF'
import os, time
secret, n = os.urandom(16).hex(), 0
while True:
    n += 1
    with open("/root/count.new", "w") as f: f.write(f"{secret} {n}\n")
    os.rename("/root/count.new", "/root/count")
    time.sleep(0.05)
EOF
setsid python3 /root/count.py >/dev/null 2>&1 </dev/null &
while [ ! -e /root/count ]; do sleep 0.05; done; cat /root/count`

// clockSlack, in seconds, is what a busy machine takes to ask a guest for its time. A clock that
// was not repaired is off by the age of its template.
const clockSlack = 10

// count reads the counter's secret and number.
func (r *roost) count(id string) (secret string, n int) {
	r.t.Helper()
	fields := strings.Fields(r.sh(id, "cat /root/count"))
	require.Len(r.t, fields, 2)
	n, err := strconv.Atoi(fields[1])
	require.NoError(r.t, err)
	return fields[0], n
}

// stillCounts proves that the same process lives and works.
func (r *roost) stillCounts(id, secret string, least int) {
	r.t.Helper()
	eventually(r.t, 20*time.Second, "the counter goes on", func() bool {
		now, n := r.count(id)
		require.Equal(r.t, secret, now, "another process counts: memory was lost")
		return n > least
	})
}

// TestLife is what the README shows, and a little more.
func TestLife(t *testing.T) {
	onEach(t, func(t *testing.T, k kind) {
		r := start(t, k.flags()...)
		id := r.run("create", "--env", "COLOR=blue")
		require.Regexp(t, regexp.MustCompile(`^[a-z0-9]{20}$`), id)

		t.Run("exec", func(t *testing.T) {
			require.Equal(t, "42", r.run("exec", id, "--", "python3", "-c", "print(6*7)"))
			res := r.try("exec", id, "--", "sh", "-c", "echo out; echo err >&2; exit 7")
			require.Equal(t, result{stdout: "out\n", stderr: "err\n", code: 7}, res)
			require.Equal(t, 128+9, r.try("exec", id, "--", "sh", "-c", "kill -9 $$").code)
			res = r.tryInput([]byte("some input"), "exec", "-i", id, "--", "wc", "-c")
			require.Equal(t, "10\n", res.stdout, res.stderr)
			require.Equal(t, "blue", r.run("exec", id, "--", "sh", "-c", "echo $COLOR"))
			require.Equal(t, "user", r.run("exec", id, "--", "id", "-un"))
			require.Equal(t, "root", r.run("exec", id, "--", "sudo", "id", "-un"))
		})
		t.Run("disk", func(t *testing.T) {
			require.InDelta(t, 5120, r.diskMB(id), 100)
		})
		t.Run("files", func(t *testing.T) { copyBothWays(t, r, id) })
		t.Run("pause and resume", func(t *testing.T) {
			secret := strings.Fields(r.sh(id, counter))[0]
			r.run("pause", id)
			require.Equal(t, v1.Paused, r.info(id).State)
			res := r.try("exec", id, "--", "true")
			require.NotZero(t, res.code)
			require.Contains(t, res.stderr, "roost resume "+id)
			_, before := 0, 0
			r.run("resume", id)
			r.stillCounts(id, secret, before)
			require.InDelta(t, time.Now().Unix(), r.number(id, "date +%s"), clockSlack, "the clock is right after a resume")
		})
		t.Run("destroy", func(t *testing.T) {
			r.run("rm", id)
			require.Equal(t, "", strings.TrimSpace(r.run("ls", "-a", "--json"))[:0])
			require.NotZero(t, r.try("exec", id, "--", "true").code)
		})
	})
}

// diskMB is the root file system's size as df has it.
func (r *roost) diskMB(id string) float64 {
	r.t.Helper()
	return float64(r.number(id, "df --output=size -m / | tail -1"))
}

func (r *roost) number(id, line string) int64 {
	r.t.Helper()
	n, err := strconv.ParseInt(strings.TrimSpace(r.sh(id, line)), 10, 64)
	require.NoError(r.t, err)
	return n
}

func copyBothWays(t *testing.T, r *roost, id string) {
	dir := t.TempDir()
	data := make([]byte, 3<<20)
	_, _ = rand.Read(data)
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "project", "sub"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "project", "sub", "data.bin"), data, 0o640))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "project", "run.sh"), []byte("#!/bin/sh\necho ran\n"), 0o755))
	r.run("cp", filepath.Join(dir, "project"), id+":/home/user/")
	require.Equal(t, "ran", r.run("exec", id, "--", "/home/user/project/run.sh"))
	r.run("cp", id+":/home/user/project", filepath.Join(dir, "back"))
	back, err := os.ReadFile(filepath.Join(dir, "back", "sub", "data.bin"))
	require.NoError(t, err)
	require.True(t, bytes.Equal(data, back))
	r.run("cp", filepath.Join(dir, "project", "sub", "data.bin"), id+":/tmp/one.bin")
	res := r.try("cp", id+":/tmp/one.bin", "-")
	require.True(t, res.stdout == string(data))
}

// TestSizes: a disk larger than the template's memory was made with is grown, a smaller one
// boots, and a new size boots once and is kept.
func TestSizes(t *testing.T) {
	onEach(t, func(t *testing.T, k kind) {
		r := start(t, k.flags()...)
		large := r.run("create", "--disk-size-mb", "8192")
		require.InDelta(t, 8192, r.diskMB(large), 200)
		r.sh(large, "dd if=/dev/zero of=/root/end bs=1M count=1 seek=7000 2>/dev/null && sync")
		r.run("rm", large)
		small := r.run("create", "--disk-size-mb", "2048")
		require.InDelta(t, 2048, r.diskMB(small), 100)
		r.run("pause", small)
		r.run("resume", small)
		require.Equal(t, "alive", r.run("exec", small, "--", "echo", "alive"))
		r.run("rm", small)
		two := r.run("create", "--vcpus", "2", "--memory-mb", "256")
		require.EqualValues(t, 2, r.number(two, "nproc"))
		require.InDelta(t, 256, float64(r.number(two, "awk '/MemTotal/{print int($2/1024)}' /proc/meminfo")), 60)
		require.Contains(t, r.run("template", "ls"), "2x256MiB")
	})
}

// TestIdentity: two sandboxes of one template share no identity and no randomness.
func TestIdentity(t *testing.T) {
	onEach(t, func(t *testing.T, k kind) {
		r := start(t, k.flags()...)
		const facts = `cat /etc/machine-id; hostname; head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n'; echo
	python3 -c 'import uuid, random; print(uuid.uuid4()); print(random.random())'`
		a, b := r.run("create"), r.run("create")
		fa, fb := strings.Fields(r.sh(a, facts)), strings.Fields(r.sh(b, facts))
		require.Len(t, fa, 5)
		for i := range fa {
			require.NotEqual(t, fa[i], fb[i], "fact %d is the same in two sandboxes", i)
		}
		require.Equal(t, a, fa[1], "the hostname is the id")
		for _, id := range []string{a, b} {
			require.InDelta(t, time.Now().Unix(), r.number(id, "date +%s"), clockSlack)
			require.Equal(t, "1", r.sh(id, "cat /run/roost/generation"))
		}
		r.run("pause", a)
		r.run("resume", a)
		require.Equal(t, "3", r.sh(a, "cat /run/roost/generation"))
		require.Equal(t, fa[0], r.sh(a, "cat /etc/machine-id"), "a resumed sandbox is the same machine")
		require.NotEqual(t, fa[2], strings.Fields(r.sh(a, facts))[2])
	})
}

// TestCycles pauses often, VMs deeper than disk layers and memory layers may be, with data in
// files, in tmpfs and in a process.
func TestCycles(t *testing.T) {
	onEach(t, func(t *testing.T, k kind) {
		r := start(t, k.flags()...)
		id := r.run("create", "--memory-mb", "256")
		secret := strings.Fields(r.sh(id, counter))[0]
		sums := map[string]string{}
		cycles := 4
		if k.virtual {
			cycles = 10
		}
		for cycle := range cycles {
			for _, dir := range []string{"/root", "/dev/shm"} {
				file := fmt.Sprintf("%s/f%d", dir, cycle)
				sums[file] = strings.Fields(r.sh(id, fmt.Sprintf("head -c 1000000 /dev/urandom >%s; sha256sum %s", file, file)))[0]
			}
			r.run("pause", id)
			r.run("resume", id)
			_, n := r.count(id)
			r.stillCounts(id, secret, n)
		}
		r.sh(id, "sync; test ! -w /proc/sys/vm/drop_caches || echo 3 >/proc/sys/vm/drop_caches")
		for file, sum := range sums {
			require.Equal(t, sum, strings.Fields(r.sh(id, "sha256sum "+file))[0], file)
		}
		layers, err := filepath.Glob(filepath.Join(r.data, "sandboxes", id, "disk", "*"))
		require.NoError(t, err)
		require.LessOrEqual(t, len(layers), 9, "layers are merged")
	})
}

// TestTimeout: a sandbox without activity pauses; output and requests keep it awake.
func TestTimeout(t *testing.T) {
	t.Parallel()
	r := start(t)
	quiet, noisy, never := r.run("create", "--timeout", "3s"), r.run("create", "--timeout", "3s"), r.run("create", "--timeout", "0")
	r.sh(noisy, "setsid sh -c 'while sleep 0.5; do echo tick; done' >/root/log 2>&1 </dev/null & echo")
	done := make(chan result, 1)
	go func() { done <- r.try("exec", noisy, "--", "sh", "-c", "sleep 6; echo done") }()
	eventually(t, 20*time.Second, "the quiet sandbox pauses", func() bool { return r.info(quiet).State == v1.Paused })
	require.Contains(t, *r.info(quiet).Reason, "idle")
	require.Equal(t, "done\n", (<-done).stdout, "a command that is waited for keeps its sandbox awake")
	eventually(t, 30*time.Second, "the other pauses once nobody waits", func() bool { return r.info(noisy).State == v1.Paused })
	require.Equal(t, v1.Running, r.info(never).State)
	r.run("timeout", never, "2")
	eventually(t, 20*time.Second, "a timeout set later counts", func() bool { return r.info(never).State == v1.Paused })
}

// TestBadInput: a typed error that says what to do, and no side effect.
func TestBadInput(t *testing.T) {
	t.Parallel()
	r := start(t)
	id := r.run("create")
	for name, c := range map[string]struct {
		args []string
		says string
	}{
		"unknown template": {[]string{"create", "nosuch"}, "nosuch"},
		"no vcpus":         {[]string{"create", "--vcpus", "99"}, "vcpus"},
		"little memory":    {[]string{"create", "--memory-mb", "16"}, "memory_mb"},
		"much memory":      {[]string{"create", "--memory-mb", "9999999"}, "memory_mb"},
		"small disk":       {[]string{"create", "--disk-size-mb", "10"}, "disk_size_mb"},
		"unknown sandbox":  {[]string{"exec", "aaaaaaaaaaaaaaaaaaaa", "--", "true"}, "roost ls"},
		"bad id":           {[]string{"info", "../../etc"}, "no sandbox id"},
		"missing file":     {[]string{"cp", id + ":/nosuch", "/tmp/x"}, "/nosuch"},
		"missing program":  {[]string{"exec", id, "--", "nosuchprogram"}, "nosuchprogram"},
		"missing folder":   {[]string{"exec", "--cwd", "/nosuch", id, "--", "true"}, "/nosuch"},
		"missing user":     {[]string{"exec", "--user", "nosuch", id, "--", "true"}, "nosuch"},
	} {
		t.Run(name, func(t *testing.T) {
			res := r.try(c.args...)
			require.NotZero(t, res.code)
			require.Contains(t, res.stdout+res.stderr, c.says)
		})
	}
	var list struct {
		Sandboxes []v1.Sandbox `json:"sandboxes"`
	}
	require.NoError(t, json.Unmarshal([]byte(r.run("ls", "--json")), &list))
	require.Len(t, list.Sandboxes, 1, "nothing was made")
	r.run("rm", id)
	r.run("rm", id) // deleting again is no error
}

// TestAfterIdlePause: what is asked right after the host paused a sandbox by itself is decided
// on what is, not on what the control plane last heard.
func TestAfterIdlePause(t *testing.T) {
	t.Parallel()
	r := start(t)
	paused := func(id string) func() bool {
		return func() bool {
			var j struct {
				State string `json:"state"`
			}
			readJSON(t, filepath.Join(r.data, "sandboxes", id, "journal.json"), &j)
			return j.State == "paused"
		}
	}
	ids := []string{r.run("create", "--timeout", "2s"), r.run("create", "--timeout", "2s"), r.run("create", "--timeout", "2s")}
	for _, id := range ids {
		eventually(t, 20*time.Second, "it is paused on the host", paused(id))
	}
	r.run("rm", ids[0])
	require.NoDirExists(t, filepath.Join(r.data, "sandboxes", ids[0]))
	r.run("timeout", ids[1], "0")
	r.run("resume", ids[1])
	require.Equal(t, "awake", r.run("exec", ids[1], "--", "echo", "awake"))
	r.run("resume", ids[2])
	require.Equal(t, "awake", r.run("exec", ids[2], "--", "echo", "awake"))
}
