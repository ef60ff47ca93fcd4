package server

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	filesystempb "github.com/roosthq/roost/api/gen/filesystem"
	processpb "github.com/roosthq/roost/api/gen/process"
	guestpb "github.com/roosthq/roost/api/gen/roost/guest/v1"
)

func TestNothingIsServedBeforeTheFirstRestore(t *testing.T) {
	t.Parallel()
	g := freshGuest(t)
	for _, token := range []string{"", accessToken, controlToken} {
		for _, route := range []string{"GET /files?path=x", "POST /files?path=x", "GET /archive?path=x", "PUT /archive?path=x", "GET /envs", "GET /nothing"} {
			method, path, _ := strings.Cut(route, " ")
			res, body := g.do(method, path, nil, "X-Access-Token", token)
			require.Equal(t, 401, res.StatusCode, route)
			require.Contains(t, body, `"code":401`)
		}
	}
	_, err := g.files.Stat(t.Context(), connect.NewRequest(&filesystempb.StatRequest{Path: "/"}))
	requireCode(t, connect.CodeUnauthenticated, err)
	stream, err := g.process.Start(t.Context(), connect.NewRequest(shell("true")))
	require.NoError(t, err)
	require.False(t, stream.Receive())
	requireCode(t, connect.CodeUnauthenticated, stream.Err())
	res, _ := g.do("GET", "/health", nil, "X-Access-Token", "")
	require.Equal(t, http.StatusNoContent, res.StatusCode)
	_, err = g.control.Stats(t.Context(), controlled(&guestpb.StatsRequest{}, controlToken))
	require.NoError(t, err)
	for _, token := range []string{"", "wrong", accessToken} {
		_, err = g.control.Stats(t.Context(), controlled(&guestpb.StatsRequest{}, token))
		requireCode(t, connect.CodeUnauthenticated, err)
	}
	_, err = g.control.Thaw(t.Context(), controlled(&guestpb.ThawRequest{}, controlToken))
	requireCode(t, connect.CodeFailedPrecondition, err)
}

func TestRestoreMakesTheSandbox(t *testing.T) {
	t.Parallel()
	g := freshGuest(t)
	req := g.restoreRequest()
	req.WallClockNs = time.Now().Add(time.Hour).UnixNano()
	res, err := g.control.Restore(t.Context(), controlled(req, controlToken))
	require.NoError(t, err)
	facts := res.Msg
	require.InDelta(t, time.Hour.Nanoseconds(), facts.GetClockSteppedNs(), float64(10*time.Second))
	require.InDelta(t, time.Now().Add(time.Hour).UnixNano(), facts.GetClockNs(), float64(10*time.Second))
	require.True(t, facts.GetRandomReseeded())
	require.Equal(t, "sandbox-host", facts.GetHostname())
	require.Equal(t, req.GetMachineId(), facts.GetMachineId())
	require.EqualValues(t, 1, facts.GetGeneration())
	require.Len(t, facts.GetBootId(), 32)
	require.True(t, facts.GetTokenRenewed())
	require.Positive(t, facts.GetRootBytes())
	require.Equal(t, "test", facts.GetGuestVersion())
	for name, want := range map[string]string{
		"etc/hostname": "sandbox-host\n", "etc/machine-id": req.GetMachineId() + "\n",
		"run/roost/generation": "1\n", "run/roost/sandbox-id": "sandbox1\n",
	} {
		got, err := os.ReadFile(filepath.Join(g.root, name))
		require.NoError(t, err)
		require.Equal(t, want, string(got))
	}
	envs, body := g.do("GET", "/envs", nil)
	require.Equal(t, 200, envs.StatusCode)
	require.JSONEq(t, `{"GLOBAL":"yes"}`, body)
}

func TestRestoreIsIdempotentByGeneration(t *testing.T) {
	t.Parallel()
	g := freshGuest(t)
	first, err := g.control.Restore(t.Context(), controlled(g.restoreRequest(), controlToken))
	require.NoError(t, err)
	for _, token := range []string{controlToken, "control-token-1"} {
		again, err := g.control.Restore(t.Context(), controlled(g.restoreRequest(), token))
		require.NoError(t, err)
		require.Equal(t, first.Msg.GetBootId(), again.Msg.GetBootId())
		require.Equal(t, first.Msg.GetRandomReseeded(), again.Msg.GetRandomReseeded())
	}
	require.Len(t, g.system.entropy, 1, "a repeat changes nothing")
	other := g.restoreRequest()
	other.AccessToken = "another"
	_, err = g.control.Restore(t.Context(), controlled(other, "control-token-1"))
	requireCode(t, connect.CodeFailedPrecondition, err)

	// The superseded token repeats this Restore and does nothing else; after the Thaw not even that.
	_, err = g.control.Thaw(t.Context(), controlled(&guestpb.ThawRequest{Generation: 1}, controlToken))
	requireCode(t, connect.CodeUnauthenticated, err)
	later := g.restoreRequest()
	later.Generation = 2
	_, err = g.control.Restore(t.Context(), controlled(later, controlToken))
	requireCode(t, connect.CodeUnauthenticated, err)
	_, err = g.control.Thaw(t.Context(), controlled(&guestpb.ThawRequest{Generation: 1}, "control-token-1"))
	require.NoError(t, err)
	_, err = g.control.Restore(t.Context(), controlled(g.restoreRequest(), controlToken))
	requireCode(t, connect.CodeUnauthenticated, err)
}

func TestRestoreRefuses(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	for name, spoil := range map[string]func(*guestpb.RestoreRequest){
		"no id":         func(r *guestpb.RestoreRequest) { r.SandboxId = "" },
		"bad machine":   func(r *guestpb.RestoreRequest) { r.MachineId = "xyz" },
		"bad hostname":  func(r *guestpb.RestoreRequest) { r.Hostname = "a b" },
		"short entropy": func(r *guestpb.RestoreRequest) { r.Entropy = make([]byte, 31) },
		"no token":      func(r *guestpb.RestoreRequest) { r.AccessToken = "" },
		"no control":    func(r *guestpb.RestoreRequest) { r.ControlToken = "" },
		"no clock":      func(r *guestpb.RestoreRequest) { r.WallClockNs = 0 },
		"unknown user":  func(r *guestpb.RestoreRequest) { r.DefaultUser = "nobody-here" },
	} {
		r := g.restoreRequest()
		r.Generation = 2
		spoil(r)
		_, err := g.control.Restore(t.Context(), controlled(r, "control-token-1"))
		require.Equal(t, connect.CodeInvalidArgument, connect.CodeOf(err), "%s: %v", name, err)
	}
	older := g.restoreRequest()
	older.Generation = 0
	_, err := g.control.Restore(t.Context(), controlled(older, "control-token-1"))
	requireCode(t, connect.CodeFailedPrecondition, err)
	require.Equal(t, "ok\n", g.exec("echo ok"), "a refused restore changes nothing")
}

// A fork is another sandbox: it starts anew at any generation, and the old token dies.
func TestRestoreOfAnotherSandboxDropsTheOldLife(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	r := g.start(t.Context(), shell("echo up; head -c 67108864 /dev/zero; echo done > done; sleep 1000"))
	r.until("up")
	fork := g.restoreRequest()
	fork.SandboxId, fork.AccessToken, fork.ControlToken = "sandbox2", "access-token-2", "control-token-2"
	_, err := g.control.Restore(t.Context(), controlled(fork, "control-token-1"))
	require.NoError(t, err)
	_, err = g.control.Thaw(t.Context(), controlled(&guestpb.ThawRequest{Generation: 1}, "control-token-2"))
	require.NoError(t, err)
	res, _ := g.do("GET", "/envs", nil)
	require.Equal(t, 401, res.StatusCode)
	res, _ = g.do("GET", "/envs", nil, "X-Access-Token", "access-token-2")
	require.Equal(t, 200, res.StatusCode)
}

// The reader of an old life is gone: its process must not wait for it.
func TestNewLifeReleasesBlockedOutput(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	other := &guest{t: t}
	other.connect(g.url) // a connection of its own, dropped by the Restore
	r := other.start(t.Context(), shell("head -c 67108864 /dev/zero; touch done; sleep 1000"))
	require.NotZero(t, r.pid)
	next := g.restoreRequest()
	next.Generation, next.ControlToken = 2, "control-token-2"
	_, err := g.control.Restore(t.Context(), controlled(next, "control-token-1"))
	require.NoError(t, err)
	_, err = g.control.Thaw(t.Context(), controlled(&guestpb.ThawRequest{Generation: 2}, "control-token-2"))
	require.NoError(t, err)
	require.Eventually(t, func() bool { _, err := os.Stat(g.home + "/done"); return err == nil }, 30*time.Second, 10*time.Millisecond)
}

func TestFailedRestoreLeavesItShutAndIsRepeated(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	sleeper := g.sleeper()
	g.system.failAt("hostname", errors.New("no such luck"))
	next := g.restoreRequest()
	next.Generation, next.ControlToken = 2, "control-token-2"
	_, err := g.control.Restore(t.Context(), controlled(next, "control-token-1"))
	requireCode(t, connect.CodeInternal, err)
	res, _ := g.do("GET", "/envs", nil)
	require.Equal(t, 401, res.StatusCode)
	require.True(t, g.frozen(sleeper))
	g.system.failAt("", nil)
	_, err = g.control.Restore(t.Context(), controlled(next, "control-token-1"))
	require.NoError(t, err)
	require.True(t, g.frozen(sleeper))
	_, err = g.control.Thaw(t.Context(), controlled(&guestpb.ThawRequest{Generation: 2}, "control-token-2"))
	require.NoError(t, err)
	require.Equal(t, "ok\n", g.exec("echo ok"))
}

// sleeper is a process to look at.
func (g *guest) sleeper() (pid string) {
	g.t.Helper()
	return strings.TrimSpace(g.start(g.t.Context(), shell("echo $$; exec sleep 1000")).until("\n"))
}

// frozen tells it from the cgroup, or, where the kernel has no freezer, from the sleeper.
func (g *guest) frozen(sleeper string) bool {
	g.t.Helper()
	data, err := os.ReadFile(g.cgroups + "/user/cgroup.freeze")
	if err == nil {
		return strings.TrimSpace(string(data)) == "1"
	}
	require.ErrorIs(g.t, err, os.ErrNotExist)
	data, err = os.ReadFile("/proc/" + sleeper + "/stat")
	require.NoError(g.t, err)
	return strings.Contains(string(data), ") T ")
}

func TestFreezeStopsAndThawContinues(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	ticks := g.home + "/ticks"
	r := g.start(t.Context(), shell("while :; do echo tick >> ticks; sleep 0.01; done"))
	size := func() int64 {
		info, err := os.Stat(ticks)
		if err != nil {
			return 0
		}
		return info.Size()
	}
	require.Eventually(t, func() bool { return size() > 0 }, 30*time.Second, 5*time.Millisecond)
	res, err := g.control.Freeze(t.Context(), controlled(&guestpb.FreezeRequest{}, "control-token-1"))
	require.NoError(t, err)
	require.Positive(t, res.Msg.GetProcesses())
	require.Equal(t, 1, g.system.syncs)
	stopped := size()
	require.Never(t, func() bool { return size() != stopped }, 200*time.Millisecond, 10*time.Millisecond)

	// A start during the freeze waits for the thaw.
	done := make(chan string, 1)
	go func() {
		stream, err := g.process.Start(t.Context(), connect.NewRequest(&processpb.StartRequest{Process: &processpb.ProcessConfig{Cmd: "true"}}))
		if err == nil && stream.Receive() {
			done <- "started"
		}
	}()
	_, err = g.control.Freeze(t.Context(), controlled(&guestpb.FreezeRequest{}, "control-token-1"))
	require.NoError(t, err, "idempotent")
	require.Empty(t, done)
	_, err = g.control.Thaw(t.Context(), controlled(&guestpb.ThawRequest{Generation: 7}, "control-token-1"))
	requireCode(t, connect.CodeFailedPrecondition, err)
	for range 2 {
		_, err = g.control.Thaw(t.Context(), controlled(&guestpb.ThawRequest{Generation: 1}, "control-token-1"))
		require.NoError(t, err)
	}
	require.Eventually(t, func() bool { return size() > stopped }, 30*time.Second, 5*time.Millisecond)
	require.Equal(t, "started", <-done)

	// Kill works on the frozen.
	_, err = g.control.Freeze(t.Context(), controlled(&guestpb.FreezeRequest{}, "control-token-1"))
	require.NoError(t, err)
	require.NoError(t, g.signal(r.pid, processpb.Signal_SIGNAL_SIGKILL))
	_, _, end := r.finish()
	require.EqualValues(t, -1, end.GetExitCode())
}

func TestFailedFreezeThaws(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	sleeper := g.sleeper()
	g.system.failAt("sync", errors.New("disk is gone"))
	_, err := g.control.Freeze(t.Context(), controlled(&guestpb.FreezeRequest{}, "control-token-1"))
	requireCode(t, connect.CodeInternal, err)
	require.False(t, g.frozen(sleeper))
	require.Equal(t, "ok\n", g.exec("echo ok"))
}

// A start that waits at the gate belongs to the old life: the new one must not run it.
func TestWaitingStartDiesWithItsLife(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	_, err := g.control.Freeze(t.Context(), controlled(&guestpb.FreezeRequest{}, "control-token-1"))
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	failed := make(chan error, 1)
	go func() {
		stream, err := g.process.Start(ctx, connect.NewRequest(shell("touch ran")))
		if err == nil {
			stream.Receive()
			err = stream.Err()
		}
		failed <- err
	}()
	require.Never(t, func() bool { return len(failed) > 0 }, 100*time.Millisecond, 10*time.Millisecond)
	next := g.restoreRequest()
	next.Generation, next.ControlToken = 2, "control-token-2"
	_, err = g.control.Restore(t.Context(), controlled(next, "control-token-1"))
	require.NoError(t, err)
	requireCode(t, connect.CodeUnavailable, <-failed)
	_, err = g.control.Thaw(t.Context(), controlled(&guestpb.ThawRequest{Generation: 2}, "control-token-2"))
	require.NoError(t, err)
	require.Equal(t, "no\n", g.exec("test -e ran || echo no"))
}

func TestStats(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	g.start(t.Context(), shell("sleep 1000"))
	res, err := g.control.Stats(t.Context(), controlled(&guestpb.StatsRequest{}, "control-token-1"))
	require.NoError(t, err)
	s := res.Msg
	require.Positive(t, s.GetCpuCount())
	require.Greater(t, s.GetMemoryTotalBytes(), s.GetMemoryUsedBytes())
	require.Greater(t, s.GetDiskTotalBytes(), s.GetDiskUsedBytes())
	require.Positive(t, s.GetProcesses())
	before := s.GetIdleMs()
	require.Eventually(t, func() bool {
		res, err := g.control.Stats(t.Context(), controlled(&guestpb.StatsRequest{}, "control-token-1"))
		return err == nil && res.Msg.GetIdleMs() > before+50
	}, 30*time.Second, 5*time.Millisecond, "asking for stats is not activity")
}

func TestWarmUpWorks(t *testing.T) {
	t.Parallel()
	g := freshGuest(t)
	err := Warm(t.Context(), g.warmConfig())
	require.NoError(t, err)
	_, err = os.Stat(g.cgroups + "/roost-warm")
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestRestoreRenewsHostKeys(t *testing.T) {
	t.Parallel()
	const keygen = "/usr/bin/ssh-keygen"
	if _, err := os.Stat(keygen); err != nil {
		t.Skip("ssh-keygen is missing: apt-get install openssh-client")
	}
	g := freshGuest(t)
	key := g.root + "/etc/ssh/ssh_host_ed25519_key"
	require.NoError(t, os.MkdirAll(filepath.Dir(key), 0o755))
	require.NoError(t, os.MkdirAll(g.root+"/usr/bin", 0o755))
	require.NoError(t, os.Symlink(keygen, g.root+keygen))
	require.NoError(t, os.WriteFile(key, []byte("the template's"), 0o600))
	_, err := g.control.Restore(t.Context(), controlled(g.restoreRequest(), controlToken))
	require.NoError(t, err)
	private, err := os.ReadFile(key)
	require.NoError(t, err)
	require.Contains(t, string(private), "OPENSSH PRIVATE KEY")
	info, err := os.Stat(key)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode())
	public, err := os.ReadFile(key + ".pub")
	require.NoError(t, err)
	require.Contains(t, string(public), "ssh-ed25519 ")
	entries, err := os.ReadDir(filepath.Dir(key))
	require.NoError(t, err)
	require.Len(t, entries, 2, "no temporary key stays")
}
