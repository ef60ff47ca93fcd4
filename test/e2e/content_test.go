package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	v1 "github.com/roosthq/roost/api/gen/v1"
)

// content is what a sandbox holds that must never change: a process's memory, a file in tmpfs,
// a file on the disk.
type content struct{ secret, sum string }

// fill puts content into a sandbox.
func (r *roost) fill(id string) content {
	r.t.Helper()
	out := strings.Fields(r.sh(id, `[ ! -e /dev/shm/pid ] || kill $(cat /dev/shm/pid); rm -f /root/count
head -c 3000000 /dev/urandom | tee /root/kept >/dev/shm/kept; sync
sha256sum </root/kept; `+counter+`; echo $! >/dev/shm/pid`))
	require.Len(r.t, out, 4)
	return content{secret: out[2], sum: out[0]}
}

// holds proves that it is all there and that the process lives: one command, since each costs.
func (r *roost) holds(id string, want content) {
	r.t.Helper()
	out := strings.Fields(r.sh(id, `sha256sum </root/kept; sha256sum </dev/shm/kept; read s before </root/count; echo $s $before
for i in $(seq 300); do read s now </root/count; [ "$now" -gt "$before" ] && break; sleep 0.1; done; echo $now`))
	require.Len(r.t, out, 7, out)
	require.Equal(r.t, want.sum, out[0], "the file on the disk changed")
	require.Equal(r.t, want.sum, out[2], "the file in memory changed")
	require.Equal(r.t, want.secret, out[4], "another process counts: memory was lost")
	before, err := strconv.Atoi(out[5])
	require.NoError(r.t, err)
	now, err := strconv.Atoi(out[6])
	require.NoError(r.t, err)
	require.Greater(r.t, now, before, "the process stands still")
}

// holdsDisk proves it of the disk alone: memory was given up.
func (r *roost) holdsDisk(id string, want content) {
	r.t.Helper()
	require.Equal(r.t, want.sum, strings.Fields(r.sh(id, "sha256sum </root/kept"))[0], "the file on the disk changed")
}

// soundLimit bounds what the collector and the control plane's reconciler take to agree with
// what is: the minute, on a machine that is busy.
const soundLimit = 2 * time.Minute

// sound proves that nothing of the installation is lost, runs twice, or belongs to nobody.
func (r *roost) sound() {
	r.t.Helper()
	var why string
	deadline := time.Now().Add(soundLimit)
	for {
		if why = r.unsound(); why == "" {
			return
		}
		if time.Now().After(deadline) {
			require.Fail(r.t, "not sound within "+soundLimit.String(), why)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// unsound names the first thing that is wrong; what is under way is wrong until it is done.
func (r *roost) unsound() string {
	rows, have := r.list(), r.journals()
	for id, j := range have {
		row, found := rows[id]
		switch {
		case !found:
			return fmt.Sprintf("sandbox %s is on the host (%s), and the API does not know it", id, j.State)
		case string(row.State) != j.State:
			return fmt.Sprintf("sandbox %s is %s, on the host %s", id, row.State, j.State)
		case !slices.Contains([]string{"running", "paused", "failed", "lost"}, j.State):
			return fmt.Sprintf("sandbox %s is %s", id, j.State)
		}
	}
	for id, row := range rows {
		if _, found := have[id]; !found {
			return fmt.Sprintf("sandbox %s is %s, and not on the host", id, row.State)
		}
	}
	if why := r.misrun(have); why != "" {
		return why
	}
	if found := r.strays(); len(found) > 0 {
		return fmt.Sprintf("strays: %v", found)
	}
	if leaks := r.leaks(); len(leaks) > 0 {
		return fmt.Sprintf("leaks: %+v", leaks)
	}
	return ""
}

// onHost is what a journal says.
type onHost struct {
	State string `json:"state"`
	UID   int    `json:"uid"`
	Slot  int    `json:"slot"`
}

func (r *roost) journals() map[string]onHost {
	r.t.Helper()
	out := map[string]onHost{}
	for _, dir := range sandboxDirs(r.t, r) {
		var j onHost
		raw, err := os.ReadFile(filepath.Join(dir, "journal.json"))
		if err != nil || json.Unmarshal(raw, &j) != nil {
			j.State = "without a journal"
		}
		out[filepath.Base(dir)] = j
	}
	return out
}

// list is what the API says, without those that are gone.
func (r *roost) list() map[string]v1.Sandbox {
	r.t.Helper()
	var l v1.SandboxList
	require.NoError(r.t, json.Unmarshal([]byte(r.run("ls", "-a", "--json")), &l))
	out := map[string]v1.Sandbox{}
	for _, s := range l.Sandboxes {
		if s.State != v1.Deleted {
			out[s.Id] = s
		}
	}
	return out
}

// misrun says what runs twice, or runs and should not, or should and does not: each running
// sandbox has one sentry or virtual machine, and nobody else has any.
func (r *roost) misrun(have map[string]onHost) string {
	running := r.instances()
	for id, j := range have {
		want := 0
		if j.State == "running" {
			want = 1
		}
		if n := len(running[j.UID]); j.UID != 0 && n != want {
			return fmt.Sprintf("sandbox %s is %s and has %d instances: %v", id, j.State, n, running[j.UID])
		}
		if j.UID == 0 && want == 1 {
			return fmt.Sprintf("sandbox %s runs without a uid", id)
		}
		delete(running, j.UID)
	}
	if len(running) > 0 {
		return fmt.Sprintf("instances of no sandbox: %v", running)
	}
	return ""
}

// instances are the sentries and virtual machines under the installation's uids.
func (r *roost) instances() map[int][]int {
	var in struct {
		Block int `json:"uid_block"`
	}
	readJSON(r.t, filepath.Join(r.data, "installation.json"), &in)
	out := map[int][]int{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		st, err := os.Stat(dir)
		if err != nil {
			continue
		}
		uid := int(st.Sys().(*syscall.Stat_t).Uid)
		if uid < in.Block || uid > in.Block+4096 || !isInstance(dir) {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(dir))
		out[uid] = append(out[uid], pid)
	}
	return out
}

// isInstance says whether a process is the sentry or the virtual machine of a sandbox: gVisor's
// others (the gofer, the processes that run user code) end with the sentry.
func isInstance(dir string) bool {
	args, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
	name, _, _ := strings.Cut(string(args), "\x00")
	name = filepath.Base(name)
	return name == "runsc-sandbox" || name == "firecracker" || strings.HasPrefix(name, "qemu")
}

// strays are files that no finished operation leaves: stages, trash, half-written files.
func (r *roost) strays() []string {
	var out []string
	for _, pattern := range []string{"*/captures/.tmp-*", ".snapshots/.tmp-*", ".snapshots/*.tmp", ".trash/*", "*/*.tmp", "*/captures/*/*.tmp"} {
		found, _ := filepath.Glob(filepath.Join(r.data, "sandboxes", pattern))
		out = append(out, found...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// leaks are what the program itself says belongs to nobody.
func (r *roost) leaks() []v1.Leak {
	r.t.Helper()
	var l v1.LeakList
	res := r.try("doctor", "leaks", "--json")
	require.NoError(r.t, json.Unmarshal([]byte(res.stdout), &l), "%s%s", res.stdout, res.stderr)
	return l.Leaks
}

// snapshots of the installation, by name.
func (r *roost) snapshots() map[string]v1.Template {
	r.t.Helper()
	var l v1.TemplateList
	require.NoError(r.t, json.Unmarshal([]byte(r.run("snapshot", "ls", "--json")), &l))
	out := map[string]v1.Template{}
	for _, s := range l.Templates {
		out[s.Name] = s
	}
	return out
}

// settles waits until the API says that a sandbox is in one of the states.
func (r *roost) settles(id string, want ...v1.SandboxState) v1.SandboxState {
	r.t.Helper()
	var state v1.SandboxState
	eventually(r.t, soundLimit, fmt.Sprintf("sandbox %s is one of %v", id, want), func() bool {
		state = r.info(id).State
		return slices.Contains(want, state)
	})
	return state
}

// sandboxDirs are those of sandboxes, and what was not deleted yet.
func sandboxDirs(t *testing.T, r *roost) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(r.data, "sandboxes", "*"))
	require.NoError(t, err)
	trash := filepath.Join(r.data, "sandboxes", ".trash")
	found = slices.DeleteFunc(found, func(dir string) bool { return strings.HasPrefix(filepath.Base(dir), ".") })
	thrown, err := filepath.Glob(filepath.Join(trash, "*"))
	require.NoError(t, err)
	return append(found, thrown...)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
