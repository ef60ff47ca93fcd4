package agenttest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/roosthq/roost/api/gen/filesystem"
	"github.com/roosthq/roost/api/gen/filesystem/filesystemconnect"
	"github.com/roosthq/roost/api/gen/process"
	"github.com/roosthq/roost/api/gen/process/processconnect"
)

// Guest runs real processes of the test machine, each in a process group of its own, and
// keeps files below Root.
type Guest struct {
	processconnect.UnimplementedProcessHandler
	filesystemconnect.UnimplementedFilesystemHandler
	Root string
	mux  *http.ServeMux

	mu      sync.Mutex
	running map[uint32]*running
	signals []process.Signal
	users   []string
	// Hold, when set, delays each start until it is closed.
	Hold chan struct{}
}

type running struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	events chan *process.ProcessEvent
	size   *process.PTY_Size
}

func newGuest(t testing.TB) *Guest {
	g := &Guest{Root: t.TempDir(), mux: http.NewServeMux(), running: map[uint32]*running{}}
	g.mux.Handle(processconnect.NewProcessHandler(g))
	g.mux.Handle(filesystemconnect.NewFilesystemHandler(g))
	g.mux.HandleFunc("/files", g.serveFile)
	g.mux.HandleFunc("/archive", g.serveFile)
	return g
}

func (g *Guest) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	user, _, _ := r.BasicAuth()
	g.users = append(g.users, user)
	g.mu.Unlock()
	g.mux.ServeHTTP(w, r)
}

// Signals that were sent, in order.
func (g *Guest) Signals() []process.Signal {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]process.Signal(nil), g.signals...)
}

// LastUser is the user of the latest request.
func (g *Guest) LastUser() string { g.mu.Lock(); defer g.mu.Unlock(); return g.users[len(g.users)-1] }

// Size is the latest terminal size of a process.
func (g *Guest) Size(pid uint32) *process.PTY_Size {
	g.mu.Lock()
	defer g.mu.Unlock()
	if p := g.running[pid]; p != nil {
		return p.size
	}
	return nil
}

// Running counts processes that have not ended.
func (g *Guest) Running() int { g.mu.Lock(); defer g.mu.Unlock(); return len(g.running) }

func (g *Guest) killAll() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for pid := range g.running {
		_ = syscall.Kill(-int(pid), syscall.SIGKILL)
	}
}

// Start runs a process that outlives the stream; the request's deadline is its lifetime.
func (g *Guest) Start(ctx context.Context, r *connect.Request[process.StartRequest], s *connect.ServerStream[process.StartResponse]) error {
	if g.Hold != nil {
		<-g.Hold
	}
	p, err := g.spawn(r.Msg)
	if err != nil {
		return connect.NewError(connect.CodeInvalidArgument, err)
	}
	send := func(ev *process.ProcessEvent) error { return s.Send(&process.StartResponse{Event: ev}) }
	return g.relay(ctx, p, send)
}

// Connect attaches to a running process.
func (g *Guest) Connect(ctx context.Context, r *connect.Request[process.ConnectRequest], s *connect.ServerStream[process.ConnectResponse]) error {
	p, err := g.find(r.Msg.Process)
	if err != nil {
		return err
	}
	return g.relay(ctx, p, func(ev *process.ProcessEvent) error { return s.Send(&process.ConnectResponse{Event: ev}) })
}

func (g *Guest) relay(ctx context.Context, p *running, send func(*process.ProcessEvent) error) error {
	pid := uint32(p.cmd.Process.Pid)
	err := send(&process.ProcessEvent{Event: &process.ProcessEvent_Start{
		Start: &process.ProcessEvent_StartEvent{Pid: pid}}})
	for err == nil {
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				_ = syscall.Kill(-int(pid), syscall.SIGKILL)
			}
			return ctx.Err()
		case ev := <-p.events:
			if err = send(ev); ev.GetEnd() != nil {
				return err
			}
		}
	}
	return err
}

func (g *Guest) spawn(m *process.StartRequest) (*running, error) {
	cmd := exec.Command(m.Process.Cmd, m.Process.Args...)
	cmd.Dir = m.Process.GetCwd()
	cmd.Env = os.Environ()
	for k, v := range m.Process.Envs {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p := &running{cmd: cmd, events: make(chan *process.ProcessEvent, 1024), size: m.GetPty().GetSize()}
	tty := m.Pty != nil
	if m.Stdin == nil || *m.Stdin || tty {
		p.stdin, _ = cmd.StdinPipe()
	}
	cmd.Stdout, cmd.Stderr = &emitter{p, 1}, &emitter{p, 2}
	if tty {
		cmd.Stdout, cmd.Stderr = &emitter{p, 3}, &emitter{p, 3}
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	pid := uint32(cmd.Process.Pid)
	g.mu.Lock()
	g.running[pid] = p
	g.mu.Unlock()
	go func() {
		_ = cmd.Wait()
		g.mu.Lock()
		delete(g.running, pid)
		g.mu.Unlock()
		p.events <- endOf(cmd.ProcessState)
	}()
	return p, nil
}

func endOf(st *os.ProcessState) *process.ProcessEvent {
	end := &process.ProcessEvent_EndEvent{ExitCode: int32(st.ExitCode()), Exited: st.Exited(), Status: st.String()}
	if st.ExitCode() < 0 {
		text := st.String()
		end.Error = &text
	}
	return &process.ProcessEvent{Event: &process.ProcessEvent_End{End: end}}
}

type emitter struct {
	p    *running
	kind int
}

func (e *emitter) Write(b []byte) (int, error) {
	data := &process.ProcessEvent_DataEvent{}
	part := append([]byte(nil), b...)
	switch e.kind {
	case 1:
		data.Output = &process.ProcessEvent_DataEvent_Stdout{Stdout: part}
	case 2:
		data.Output = &process.ProcessEvent_DataEvent_Stderr{Stderr: part}
	default:
		data.Output = &process.ProcessEvent_DataEvent_Pty{Pty: part}
	}
	e.p.events <- &process.ProcessEvent{Event: &process.ProcessEvent_Data{Data: data}}
	return len(b), nil
}

func (g *Guest) find(s *process.ProcessSelector) (*running, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if p := g.running[s.GetPid()]; p != nil {
		return p, nil
	}
	return nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("no process %d", s.GetPid()))
}

// SendInput writes to a process.
func (g *Guest) SendInput(_ context.Context, r *connect.Request[process.SendInputRequest]) (*connect.Response[process.SendInputResponse], error) {
	p, err := g.find(r.Msg.Process)
	if err != nil {
		return nil, err
	}
	data := r.Msg.Input.GetStdin()
	if data == nil {
		data = r.Msg.Input.GetPty()
	}
	if _, err := p.stdin.Write(data); err != nil {
		return nil, connect.NewError(connect.CodeFailedPrecondition, err)
	}
	return connect.NewResponse(&process.SendInputResponse{}), nil
}

// CloseStdin ends a process's input.
func (g *Guest) CloseStdin(_ context.Context, r *connect.Request[process.CloseStdinRequest]) (*connect.Response[process.CloseStdinResponse], error) {
	p, err := g.find(r.Msg.Process)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&process.CloseStdinResponse{}), p.stdin.Close()
}

// Update resizes.
func (g *Guest) Update(_ context.Context, r *connect.Request[process.UpdateRequest]) (*connect.Response[process.UpdateResponse], error) {
	p, err := g.find(r.Msg.Process)
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	p.size = r.Msg.Pty.GetSize()
	g.mu.Unlock()
	return connect.NewResponse(&process.UpdateResponse{}), nil
}

// SendSignal signals the whole group.
func (g *Guest) SendSignal(_ context.Context, r *connect.Request[process.SendSignalRequest]) (*connect.Response[process.SendSignalResponse], error) {
	g.mu.Lock()
	g.signals = append(g.signals, r.Msg.Signal)
	g.mu.Unlock()
	if _, err := g.find(r.Msg.Process); err != nil {
		return nil, err
	}
	return connect.NewResponse(&process.SendSignalResponse{}),
		syscall.Kill(-int(r.Msg.Process.GetPid()), syscall.Signal(r.Msg.Signal))
}

func (g *Guest) at(path string) string { return filepath.Join(g.Root, filepath.Clean("/"+path)) }

// serveFile serves bytes; an archive is kept as the bytes that came.
func (g *Guest) serveFile(w http.ResponseWriter, r *http.Request) {
	path := g.at(r.URL.Query().Get("path"))
	switch r.Method {
	case http.MethodGet:
		f, err := os.Open(path)
		if err != nil {
			http.Error(w, `{"code":404,"message":"no such file"}`, http.StatusNotFound)
			return
		}
		defer f.Close()
		http.ServeContent(w, r, "", time.Time{}, f)
	default:
		g.receive(w, r, path)
	}
}

func (g *Guest) receive(w http.ResponseWriter, r *http.Request, path string) {
	if filepath.Base(path) == "full" {
		http.Error(w, `{"code":507,"message":"no space left on device"}`, http.StatusInsufficientStorage)
		return
	}
	_ = os.MkdirAll(filepath.Dir(path), 0o755)
	f, err := os.Create(path)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer f.Close()
	if r.URL.Query().Get("mode") == "0755" {
		_ = f.Chmod(0o755)
	}
	if _, err := io.Copy(f, r.Body); err != nil {
		_ = os.Remove(path)
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	fmt.Fprintf(w, `[{"path":%q}]`, path)
}

func (g *Guest) info(path string) (*filesystem.EntryInfo, error) {
	st, err := os.Lstat(g.at(path))
	if err != nil {
		return nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("%s does not exist", path))
	}
	e := &filesystem.EntryInfo{Name: st.Name(), Path: path, Size: st.Size(), Mode: uint32(st.Mode().Perm()),
		Type: filesystem.FileType_FILE_TYPE_FILE, Owner: "user", ModifiedTime: timestamppb.New(st.ModTime())}
	if st.IsDir() {
		e.Type = filesystem.FileType_FILE_TYPE_DIRECTORY
	}
	if st.Mode()&os.ModeSymlink != 0 {
		target, _ := os.Readlink(g.at(path))
		e.SymlinkTarget = &target
	}
	return e, nil
}

// Stat reports one entry.
func (g *Guest) Stat(_ context.Context, r *connect.Request[filesystem.StatRequest]) (*connect.Response[filesystem.StatResponse], error) {
	e, err := g.info(r.Msg.Path)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&filesystem.StatResponse{Entry: e}), nil
}

// MakeDir refuses a folder that exists.
func (g *Guest) MakeDir(_ context.Context, r *connect.Request[filesystem.MakeDirRequest]) (*connect.Response[filesystem.MakeDirResponse], error) {
	if _, err := g.info(r.Msg.Path); err == nil {
		return nil, connect.NewError(connect.CodeAlreadyExists, fmt.Errorf("%s exists", r.Msg.Path))
	}
	if err := os.MkdirAll(g.at(r.Msg.Path), 0o755); err != nil {
		return nil, err
	}
	e, err := g.info(r.Msg.Path)
	return connect.NewResponse(&filesystem.MakeDirResponse{Entry: e}), err
}

// ListDir lists one level.
func (g *Guest) ListDir(_ context.Context, r *connect.Request[filesystem.ListDirRequest]) (*connect.Response[filesystem.ListDirResponse], error) {
	names, err := os.ReadDir(g.at(r.Msg.Path))
	if err != nil {
		return nil, connect.NewError(connect.CodeNotFound, err)
	}
	out := &filesystem.ListDirResponse{}
	for _, n := range names {
		e, err := g.info(filepath.Join(r.Msg.Path, n.Name()))
		if err != nil {
			return nil, err
		}
		out.Entries = append(out.Entries, e)
	}
	return connect.NewResponse(out), nil
}

// Remove removes everything at a path.
func (g *Guest) Remove(_ context.Context, r *connect.Request[filesystem.RemoveRequest]) (*connect.Response[filesystem.RemoveResponse], error) {
	return connect.NewResponse(&filesystem.RemoveResponse{}), os.RemoveAll(g.at(r.Msg.Path))
}
