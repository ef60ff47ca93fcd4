package server

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/api/gen/filesystem/filesystemconnect"
	processpb "github.com/roosthq/roost/api/gen/process"
	"github.com/roosthq/roost/api/gen/process/processconnect"
	guestpb "github.com/roosthq/roost/api/gen/roost/guest/v1"
	"github.com/roosthq/roost/api/gen/roost/guest/v1/guestv1connect"
	"github.com/roosthq/roost/internal/guest/account"
	"github.com/roosthq/roost/internal/guest/guesttest"
	"github.com/roosthq/roost/internal/guest/reaper"
	"github.com/roosthq/roost/internal/guest/restore"
)

const (
	accessToken  = "access-token-1"
	controlToken = "control-token-0"
	testUID      = 54321
)

// fakeSystem stands for the kernel, so that no test moves this host's clock or name.
type fakeSystem struct {
	mu       sync.Mutex
	offset   time.Duration
	hostname string
	entropy  [][]byte
	syncs    int
	fail     map[string]error // by step
}

func (f *fakeSystem) Now() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return time.Now().Add(f.offset)
}

func (f *fakeSystem) SetClock(t time.Time) (time.Duration, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	before := f.offset
	f.offset = time.Until(t)
	return f.offset - before, f.fail["clock"]
}

func (f *fakeSystem) AddEntropy(b []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.entropy = append(f.entropy, b)
	return f.fail["entropy"]
}

func (f *fakeSystem) SetHostname(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hostname = name
	return f.fail["hostname"]
}

func (f *fakeSystem) Hostname() (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.hostname, nil
}

func (f *fakeSystem) Grow(string, string) error { return nil }

func (f *fakeSystem) Sync(string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.syncs++
	return f.fail["sync"]
}

func (f *fakeSystem) failAt(step string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = map[string]error{step: err}
}

// guest is a server under test and clients for it.
type guest struct {
	t       *testing.T
	url     string
	home    string
	root    string
	cgroups string
	system  *fakeSystem
	http    *http.Client
	process processconnect.ProcessClient
	files   filesystemconnect.FilesystemClient
	control guestv1connect.ControlClient
}

// freshGuest is a guest before its first Restore.
func freshGuest(t *testing.T) *guest {
	t.Helper()
	base := t.TempDir()
	require.NoError(t, os.Chmod(filepath.Dir(base), 0o755)) // the test user must get through
	g := &guest{t: t, root: filepath.Join(base, "root"), home: filepath.Join(base, "home"), system: &fakeSystem{hostname: "before"}}
	require.NoError(t, os.MkdirAll(g.root, 0o755))
	require.NoError(t, os.Mkdir(g.home, 0o755))
	require.NoError(t, os.Chown(g.home, testUID, testUID))
	cgroup := guesttest.Cgroup(t)
	g.cgroups = cgroup
	s, err := New(t.Context(), Config{
		ControlToken: controlToken, DefaultUser: "user", Version: "test", Root: g.root, CgroupRoot: cgroup,
		System: g.system, Reaper: reaper.NewOwn(), Users: testUsers(t, base, g.home),
	})
	require.NoError(t, err)
	g.serve(s)
	return g
}

func testUsers(t *testing.T, dir, home string) account.Database {
	t.Helper()
	db := account.Database{Passwd: filepath.Join(dir, "passwd"), Group: filepath.Join(dir, "group")}
	passwd := fmt.Sprintf("root:x:0:0::/root:/bin/bash\nuser:x:%d:%d::%s:/bin/bash\n", testUID, testUID, home)
	require.NoError(t, os.WriteFile(db.Passwd, []byte(passwd), 0o644))
	group := fmt.Sprintf("root:x:0:\nuser:x:%d:\nextra:x:%d:someone,user\n", testUID, testUID+1)
	require.NoError(t, os.WriteFile(db.Group, []byte(group), 0o644))
	return db
}

func (g *guest) serve(s *Server) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(g.t, err)
	go func() { _ = s.Serve(l) }()
	g.t.Cleanup(func() { require.NoError(g.t, s.Close()) })
	g.connect("http://" + l.Addr().String())
}

// connect makes clients; h2c, as the host does.
func (g *guest) connect(url string) {
	g.url = url
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	g.http = &http.Client{Transport: &http.Transport{Protocols: protocols}}
	g.t.Cleanup(g.http.CloseIdleConnections)
	auth := connect.WithInterceptors(tokens{access: accessToken})
	g.process = processconnect.NewProcessClient(g.http, url, auth)
	g.files = filesystemconnect.NewFilesystemClient(g.http, url, auth)
	g.control = guestv1connect.NewControlClient(g.http, url)
}

// newGuest is a restored, thawed guest.
func newGuest(t *testing.T) *guest {
	t.Helper()
	g := freshGuest(t)
	_, err := g.control.Restore(t.Context(), controlled(g.restoreRequest(), controlToken))
	require.NoError(t, err)
	_, err = g.control.Thaw(t.Context(), controlled(&guestpb.ThawRequest{Generation: 1}, "control-token-1"))
	require.NoError(t, err)
	return g
}

func (g *guest) restoreRequest() *guestpb.RestoreRequest {
	return &guestpb.RestoreRequest{
		SandboxId: "sandbox1", Generation: 1, WallClockNs: time.Now().UnixNano(), Entropy: []byte(strings.Repeat("e", 64)),
		Hostname: "sandbox-host", MachineId: "0123456789abcdef0123456789abcdef", AccessToken: accessToken,
		ControlToken: "control-token-1", Envs: map[string]string{"GLOBAL": "yes"}, DefaultUser: "user",
	}
}

func controlled[T any](msg *T, token string) *connect.Request[T] {
	req := connect.NewRequest(msg)
	req.Header().Set(restore.TokenHeader, token)
	return req
}

// tokens puts the access token on every request.
type tokens struct{ access string }

func (k tokens) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		req.Header().Set("X-Access-Token", k.access)
		return next(ctx, req)
	}
}

func (k tokens) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		conn := next(ctx, spec)
		conn.RequestHeader().Set("X-Access-Token", k.access)
		return conn
	}
}

func (k tokens) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

func as(user string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"))
}

// answer is the head of a response.
type answer struct {
	StatusCode int
	Header     http.Header
}

// do sends a plain request with the access token.
func (g *guest) do(method, path string, body io.Reader, headers ...string) (answer, string) {
	g.t.Helper()
	req, err := http.NewRequestWithContext(g.t.Context(), method, g.url+path, body)
	require.NoError(g.t, err)
	req.Header.Set("X-Access-Token", accessToken)
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := g.http.Do(req)
	require.NoError(g.t, err)
	defer func() { _ = res.Body.Close() }()
	data, err := io.ReadAll(res.Body)
	require.NoError(g.t, err)
	return answer{res.StatusCode, res.Header}, string(data)
}

// run is a started process being read.
type run struct {
	g      *guest
	stream *connect.ServerStreamForClient[processpb.StartResponse]
	pid    uint32
}

func shell(script string) *processpb.StartRequest {
	return &processpb.StartRequest{Process: &processpb.ProcessConfig{Cmd: "/bin/bash", Args: []string{"-c", script}}}
}

func (g *guest) start(ctx context.Context, msg *processpb.StartRequest) *run {
	g.t.Helper()
	stream, err := g.process.Start(ctx, connect.NewRequest(msg))
	require.NoError(g.t, err)
	g.t.Cleanup(func() { _ = stream.Close() })
	require.True(g.t, stream.Receive(), "%v", stream.Err())
	pid := stream.Msg().GetEvent().GetStart().GetPid()
	require.NotZero(g.t, pid, "the first event must be start")
	return &run{g: g, stream: stream, pid: pid}
}

// next is the next piece of output, from whichever stream.
func (r *run) next() string {
	r.g.t.Helper()
	for r.stream.Receive() {
		d := r.stream.Msg().GetEvent().GetData()
		if text := string(d.GetStdout()) + string(d.GetStderr()) + string(d.GetPty()); text != "" {
			return text
		}
	}
	require.NoError(r.g.t, r.stream.Err())
	require.Fail(r.g.t, "the process ended")
	return ""
}

// until reads output until it holds text.
func (r *run) until(text string) string {
	r.g.t.Helper()
	got := ""
	for !strings.Contains(got, text) {
		got += r.next()
	}
	return got
}

// finish reads to the end.
func (r *run) finish() (stdout, stderr string, end *processpb.ProcessEvent_EndEvent) {
	r.g.t.Helper()
	var out, errs strings.Builder
	for r.stream.Receive() {
		require.Nil(r.g.t, end, "nothing may follow the end")
		e := r.stream.Msg().GetEvent()
		out.Write(e.GetData().GetStdout())
		out.Write(e.GetData().GetPty())
		errs.Write(e.GetData().GetStderr())
		end = e.GetEnd()
	}
	require.NoError(r.g.t, r.stream.Err())
	require.NotNil(r.g.t, end, "the last event must be end")
	return out.String(), errs.String(), end
}

func (g *guest) exec(script string) string {
	g.t.Helper()
	out, errs, end := g.start(g.t.Context(), shell(script)).finish()
	require.Zero(g.t, end.GetExitCode(), "%s", errs)
	return out
}

func byPID(pid uint32) *processpb.ProcessSelector {
	return &processpb.ProcessSelector{Selector: &processpb.ProcessSelector_Pid{Pid: pid}}
}

func (g *guest) signal(pid uint32, sig processpb.Signal) error {
	_, err := g.process.SendSignal(g.t.Context(), connect.NewRequest(&processpb.SendSignalRequest{Process: byPID(pid), Signal: sig}))
	return err
}

func requireCode(t *testing.T, code connect.Code, err error) {
	t.Helper()
	require.Error(t, err)
	require.Equal(t, code, connect.CodeOf(err), "%v", err)
}

func (g *guest) warmConfig() Config {
	return Config{
		DefaultUser: "user", Version: "test", CgroupRoot: g.cgroups, Reaper: reaper.NewOwn(),
		Users: testUsers(g.t, g.t.TempDir(), g.home),
	}
}
