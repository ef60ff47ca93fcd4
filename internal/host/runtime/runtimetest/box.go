package runtimetest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/guestclient"
	"github.com/roosthq/roost/internal/host/runtime"
)

const (
	defaultUser  = "user"
	bootHostname = "roost"
	memoryMB     = 256
	// warmDiskMB is the disk that the template's capture is made with.
	warmDiskMB = 64
	// limit is how long anything may take: guests are translated here, beside
	// other tests, or nested in one that is.
	limit = 10 * time.Minute
	// freezeSync bounds the guest's sync.
	freezeSync = 20 * time.Second
)

// saved is a published capture and what its guest is known by.
type saved struct {
	runtime.Capture
	token string
	// resources that the capture was made with.
	resources runtime.Resources
}

// box is one start of a sandbox: what it was given, what came of it, and the way in.
type box struct {
	*testing.T
	s     *suite
	rt    runtime.Runtime
	spec  runtime.Spec
	slot  *slot
	in    runtime.Instance
	guest *guestclient.Client
	id    guestclient.Identity
	// captures counts, to name directories.
	captures int
}

// The uids of this process: far above those of installations (package uids) and other suites.
const (
	firstUID = 1_000_000_000
	uidsEach = 2000
)

var nextUID atomic.Int64

func newUID() int {
	return firstUID + os.Getpid()%100_000*uidsEach + int(nextUID.Add(1))%uidsEach
}

// newBox makes what a start needs. At the case's end whatever is left of it is ended, and
// nothing of it may remain.
func (s *suite) newBox(t *testing.T) *box {
	t.Helper()
	dir := t.TempDir()
	uid := newUID()
	b := &box{T: t, s: s, rt: s.rt, slot: newSlot(t, s.rt.Capabilities(), uid)}
	b.spec = runtime.Spec{
		ID: "box-" + randomHex(8), Template: s.fixtures.template, UID: uid, Port: b.slot.port,
		Resources: runtime.Resources{VCPUs: 1, MemoryMB: memoryMB, DiskSizeMB: warmDiskMB},
		RunDir:    filepath.Join(dir, "run"), DiskDir: filepath.Join(dir, "disk"), DiskIndex: 3,
	}
	for _, d := range []string{b.spec.RunDir, b.spec.DiskDir} {
		require.NoError(t, os.Mkdir(d, 0o700))
	}
	b.id = guestclient.Identity{
		SandboxID: b.spec.ID, Hostname: b.spec.ID, MachineID: randomHex(16), AccessToken: randomHex(32),
		ControlToken: randomHex(32), DefaultUser: defaultUser, Grow: true,
		Envs: map[string]string{"BOX": b.spec.ID},
	}
	t.Cleanup(b.end)
	return b
}

func randomHex(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	return hex.EncodeToString(b)
}

// again makes the next start of the same sandbox: new slot, uid and disk index, same
// directories and identity.
func (b *box) again() *box {
	b.Helper()
	next := b.s.newBox(b.T)
	next.spec.ID, next.spec.RunDir, next.spec.DiskDir = b.spec.ID, b.spec.RunDir, b.spec.DiskDir
	next.spec.DiskIndex, next.spec.Resources = b.spec.DiskIndex+1, b.spec.Resources
	token := next.id.ControlToken
	next.id, next.captures = b.id, b.captures
	next.id.ControlToken = token // renewed at each start
	return next
}

// end stops and discards, and checks that nothing is left.
func (b *box) end() {
	b.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if b.Failed() {
		b.logConsole()
	}
	if b.guest != nil {
		b.guest.Close()
	}
	if b.in != nil {
		require.NoError(b, b.in.Stop(ctx))
	}
	require.NoError(b, b.rt.Discard(ctx, b.spec))
	b.nothingRuns()
}

func (b *box) logConsole() {
	const most = 3000
	if text, err := b.rt.ConsoleOf(b.spec); err == nil {
		b.Logf("console of %s:\n%s", b.spec.ID, text[max(0, len(text)-most):])
	}
	logs, _ := filepath.Glob(filepath.Join(b.spec.RunDir, "*.log"))
	for _, path := range logs {
		if text, err := os.ReadFile(path); err == nil && filepath.Base(path) != "console.log" {
			b.Logf("%s:\n%s", path, text[max(0, len(text)-most):])
		}
	}
}

// nothingRuns checks that no process has the uid or uses the namespace.
func (b *box) nothingRuns() {
	b.Helper()
	require.Empty(b, ofUID(b, b.spec.UID), "processes of the uid")
	require.Empty(b, b.slot.users(b), "processes in the slot's namespace")
}

// ctx ends with the limit, and with the instance if there is one.
func (b *box) ctx() context.Context {
	ctx, cancel := context.WithTimeoutCause(b.Context(), limit, errors.New("the test's limit is over"))
	b.Cleanup(cancel)
	if b.in == nil {
		return ctx
	}
	ctx, stop := context.WithCancelCause(ctx)
	in := b.in
	go func() {
		select {
		case <-in.Exited():
			stop(errors.New("the sandbox ended: " + in.Exit().Reason))
		case <-ctx.Done():
			stop(nil)
		}
	}()
	return ctx
}

// boot starts a kernel, or the guest agent where the runtime has the kernel, and connects. It
// returns the token that the guest accepts.
func (b *box) boot(opts runtime.BootOptions) (token string) {
	b.Helper()
	token = b.bootable()
	in, err := b.rt.Boot(b.ctx(), b.spec, opts)
	require.NoError(b, err)
	b.in = in
	b.connect(token)
	ctx := b.ctx()
	require.NoError(b, b.guest.WaitReady(ctx), "%v", context.Cause(ctx))
	return token
}

// bootable completes the spec for Boot and returns the token that the guest will accept.
func (b *box) bootable() string {
	b.Helper()
	token := randomHex(32)
	if !b.rt.Capabilities().GuestBoots {
		b.spec.Guest = runtime.Guest{
			Path: b.s.fixtures.guest, Token: token, Hostname: bootHostname, DNS: gatewayAddr, DefaultUser: defaultUser,
		}
		return token
	}
	b.spec.Initrd = filepath.Join(b.spec.RunDir, "initrd")
	_ = os.Remove(b.spec.Initrd)
	require.NoError(b, b.s.fixtures.writeInitrd(b.spec.Initrd, token))
	return token
}

func (b *box) connect(token string) {
	b.guest = guestclient.New(b.slot.dial, token)
}

// restore brings a sandbox back, up to where user processes wait for the guest's thaw.
func (b *box) restore(from saved) {
	b.Helper()
	in, err := b.rt.Restore(b.ctx(), b.spec, from.Capture)
	require.NoError(b, err)
	b.in = in
	require.NoError(b, in.Thaw(b.ctx()))
	b.connect(from.token)
}

// introduce is the handshake; user processes wait.
func (b *box) introduce() guestclient.Facts {
	b.Helper()
	b.id.Generation++
	ctx := b.ctx()
	facts, err := b.guest.Handshake(ctx, b.id)
	require.NoError(b, err, "%v", context.Cause(ctx))
	return facts
}

func (b *box) thawGuest() {
	b.Helper()
	require.NoError(b, b.guest.Thaw(b.ctx(), b.id.Generation))
}

// start restores a capture and lets it run.
func (b *box) start(from saved) guestclient.Facts {
	b.Helper()
	b.restore(from)
	facts := b.introduce()
	b.thawGuest()
	return facts
}

// fresh is a running sandbox of the suite's template.
func (s *suite) fresh(t *testing.T) *box {
	t.Helper()
	tpl := s.template(t)
	b := s.newBox(t)
	b.start(tpl)
	return b
}

// freeze freezes from the inside out.
func (b *box) freeze() {
	b.Helper()
	require.NoError(b, b.guest.Freeze(b.ctx(), freezeSync))
	b.guest.CloseIdle()
	require.NoError(b, b.in.Freeze(b.ctx()))
}

// thaw undoes freeze, from the outside in.
func (b *box) thaw() {
	b.Helper()
	require.NoError(b, b.in.Thaw(b.ctx()))
	b.thawGuest()
}

// capture saves the frozen sandbox and publishes that by a rename, as the state machine does.
func (b *box) capture(opts runtime.CaptureOptions) saved {
	b.Helper()
	c, stats := b.tryCapture(opts)
	require.NotEmpty(b, stats.Phases)
	return c
}

func (b *box) tryCapture(opts runtime.CaptureOptions) (saved, runtime.CaptureStats) {
	b.Helper()
	b.captures++
	stage := filepath.Join(filepath.Dir(b.spec.DiskDir), fmt.Sprintf(".capture-%d", b.captures))
	final := strings.Replace(stage, ".capture", "capture", 1)
	require.NoError(b, os.Mkdir(stage, 0o700))
	record, stats, err := b.in.Capture(b.ctx(), stage, opts)
	require.NoError(b, err)
	require.NoError(b, os.Rename(stage, final))
	return saved{
		Capture: runtime.Capture{Dir: final, Record: record}, token: b.id.ControlToken, resources: b.spec.Resources,
	}, stats
}

// pause freezes, captures and stops.
func (b *box) pause(opts runtime.CaptureOptions) saved {
	b.Helper()
	b.freeze()
	c := b.capture(opts)
	b.stop()
	return c
}

func (b *box) stop() {
	b.Helper()
	b.guest.Close()
	require.NoError(b, b.in.Stop(b.Context()))
}

// awaitExit waits for the end of the instance.
func (b *box) awaitExit() runtime.Exit {
	b.Helper()
	select {
	case <-b.in.Exited():
	case <-time.After(limit):
		require.Fail(b, "the instance's end was not seen")
	}
	return b.in.Exit()
}

// template is the suite's one template capture: booted, settled, and frozen before any life.
func (s *suite) template(t *testing.T) saved {
	t.Helper()
	s.once.Do(func() { s.makeTemplate(t) })
	require.NotEmpty(t, s.tpl.Dir, "the template could not be made")
	return s.tpl
}

// makeTemplate keeps the capture for as long as the suite runs, whichever case needs it first.
func (s *suite) makeTemplate(t *testing.T) {
	t.Helper()
	b := s.newBox(t)
	dir := filepath.Join(s.top.TempDir(), "warm")
	require.NoError(t, os.Mkdir(dir, 0o700))
	b.spec.DiskDir, b.spec.DiskIndex = dir, 0
	token := b.boot(runtime.BootOptions{Template: true})
	_, err := b.guest.Grow(b.ctx())
	require.NoError(t, err)
	require.NoError(t, b.guest.Freeze(b.ctx(), freezeSync))
	b.guest.Close()
	require.NoError(t, b.in.Freeze(b.ctx()))
	record, stats, err := b.in.Capture(context.WithoutCancel(b.ctx()), dir, runtime.CaptureOptions{})
	require.NoError(t, err)
	require.Positive(t, stats.BytesWritten)
	require.NoError(t, b.in.Stop(t.Context()))
	b.awaitExit()
	s.tpl = saved{Capture: runtime.Capture{Dir: dir, Record: record}, token: token, resources: b.spec.Resources}
}

// refused wants an error of a kind.
func refused(t testing.TB, err error, kind fault.Kind) {
	t.Helper()
	require.Error(t, err)
	require.Equal(t, kind, fault.KindOf(err), "%v", err)
}
