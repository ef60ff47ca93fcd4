package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	v1 "github.com/roosthq/roost/api/gen/v1"
)

// startLimit bounds a start: one that must boot a template's VM on a busy machine.
const startLimit = 3 * time.Minute

// roost is one installation under test, as one test sees it.
type roost struct {
	t *testing.T
	*home
}

// home is what an installation is; several tests may use it, one after the other.
type home struct {
	data  string
	extra []string

	mu     sync.Mutex
	server *exec.Cmd
	url    string
	exited chan struct{}
}

// as is the installation for a subtest, which fails by itself.
func (r *roost) as(t *testing.T) *roost { return &roost{t: t, home: r.home} }

// start makes an installation and starts it; the test's end removes it and everything of it.
func start(t *testing.T, flags ...string) *roost {
	t.Helper()
	r := install(t, flags...)
	r.up()
	return r
}

// install makes an installation that is not started.
func install(t *testing.T, flags ...string) *roost {
	t.Helper()
	// Not t.TempDir: its name would be too long for the sockets below it.
	data, err := os.MkdirTemp("", "roost-e2e-") //nolint:usetesting // see above
	require.NoError(t, err)
	// Templates and their memory are shared: they are immutable, and booting takes seconds.
	require.NoError(t, os.Symlink(filepath.Join(templates, "images"), filepath.Join(data, "images")))
	require.NoError(t, os.Mkdir(filepath.Join(data, "armed"), 0o700))
	r := &roost{t: t, home: &home{data: data, extra: flags}}
	t.Cleanup(r.remove)
	return r
}

// arm makes the server fail ("error", "once") or die ("kill") at a point, from now on.
func (r *roost) arm(point, action string) {
	r.t.Helper()
	file := filepath.Join(r.data, "armed", point)
	require.NoError(r.t, os.WriteFile(file+".new", []byte(action), 0o600))
	require.NoError(r.t, os.Rename(file+".new", file)) // a step that is held reads it all the time
}

func (r *roost) disarm(point string) { _ = os.Remove(filepath.Join(r.data, "armed", point)) }

// up starts the server and waits until it serves.
func (r *roost) up(env ...string) {
	r.t.Helper()
	require.NoError(r.t, r.tryUp(env...), "roost up; its log:\n%s", r.log())
}

func (r *roost) tryUp(env ...string) error {
	ready := filepath.Join(r.data, "ready")
	_ = os.Remove(ready)
	args := append([]string{"up", "--data", r.data, "--listen", "127.0.0.1:0", "--accel", "tcg",
		"--resolver", resolverAddr, "--ready-file", ready, "--log-file", filepath.Join(r.data, "log"), "--verbose"}, r.extra...)
	cmd := exec.Command(roostBin, args...)
	cmd.Env = append(append(os.Environ(), "ROOST_FAILPOINTS=@"+filepath.Join(r.data, "armed")), env...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return err
	}
	r.mu.Lock()
	r.server, r.exited = cmd, make(chan struct{})
	exited := r.exited
	r.mu.Unlock()
	go func() {
		_ = cmd.Wait()
		close(exited)
	}()
	deadline := time.After(startLimit)
	for {
		if raw, err := os.ReadFile(ready); err == nil && len(raw) > 0 {
			r.url = strings.TrimSpace(string(raw))
			return nil
		}
		select {
		case <-exited:
			return fmt.Errorf("it ended: %s", out.String())
		case <-deadline:
			return fmt.Errorf("it does not serve after %s: %s", startLimit, out.String())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// signal sends a signal to the server and waits for its end.
func (r *roost) signal(sig syscall.Signal) {
	r.t.Helper()
	r.mu.Lock()
	server, exited := r.server, r.exited
	r.mu.Unlock()
	if server == nil {
		return
	}
	_ = server.Process.Signal(sig)
	r.wait(exited)
}

// dies waits for the server to end by itself (a failpoint killed it).
func (r *roost) dies() {
	r.t.Helper()
	r.wait(r.exited)
}

func (r *roost) wait(exited chan struct{}) {
	r.t.Helper()
	select {
	case <-exited:
	case <-time.After(time.Minute):
		r.t.Fatal("the server does not end")
	}
}

func (r *roost) kill() { r.t.Helper(); r.signal(syscall.SIGKILL) }
func (r *roost) stop() { r.t.Helper(); r.signal(syscall.SIGTERM) }

func (r *roost) log() string {
	raw, _ := os.ReadFile(filepath.Join(r.data, "log"))
	if len(raw) > 20000 {
		raw = raw[len(raw)-20000:]
	}
	return string(raw)
}

// remove uninstalls and proves that nothing of the installation is left.
func (r *roost) remove() {
	if r.t.Failed() {
		r.t.Logf("log of %s:\n%s", r.data, r.log())
		r.keepRemains()
	}
	id := r.installation()
	r.stop()
	out, err := exec.Command(roostBin, "uninstall", "--data", r.data, "--yes", "--keep-images").CombinedOutput()
	if err != nil {
		r.t.Errorf("roost uninstall: %v\n%s", err, out)
	}
	if id != "" {
		for _, leak := range r.leftovers(id) {
			r.t.Errorf("left behind: %s", leak)
		}
	}
	_ = os.RemoveAll(r.data)
}

// installation is the id of the installation and its first uid.
func (r *roost) installation() string {
	var in struct {
		ID string `json:"id"`
	}
	raw, err := os.ReadFile(filepath.Join(r.data, "installation.json"))
	if err != nil || json.Unmarshal(raw, &in) != nil {
		return ""
	}
	return in.ID
}

// result of one command.
type result struct {
	stdout, stderr string
	code           int
}

// try runs the command line and returns what came of it.
func (r *roost) try(args ...string) result {
	r.t.Helper()
	return r.tryInput(nil, args...)
}

func (r *roost) tryInput(stdin []byte, args ...string) result {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, roostBin, args...)
	cmd.Env = append(os.Environ(), "ROOST_DATA="+r.data, "XDG_CONFIG_HOME="+r.data)
	cmd.Stdin = bytes.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	res := result{stdout: out.String(), stderr: errs.String()}
	if err != nil {
		res.code = -1
		if cmd.ProcessState != nil {
			res.code = cmd.ProcessState.ExitCode()
		}
	}
	return res
}

// run is a command that must succeed; it returns its trimmed output.
func (r *roost) run(args ...string) string {
	r.t.Helper()
	res := r.try(args...)
	require.Equal(r.t, 0, res.code, "roost %s: %s%s", strings.Join(args, " "), res.stdout, res.stderr)
	return strings.TrimSpace(res.stdout)
}

// sh runs a shell line in a sandbox.
func (r *roost) sh(id, line string) string {
	r.t.Helper()
	return r.run("exec", "--user", "root", id, "--", "sh", "-c", line)
}

// info of a sandbox as the API has it.
func (r *roost) info(id string) v1.Sandbox {
	r.t.Helper()
	var s v1.Sandbox
	require.NoError(r.t, json.Unmarshal([]byte(r.run("info", id, "--json")), &s))
	return s
}

// eventually waits for a condition that another process makes true.
func eventually(t *testing.T, limit time.Duration, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", limit, what)
		}
		time.Sleep(50 * time.Millisecond)
	}
}
