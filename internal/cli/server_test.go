package cli_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/stretchr/testify/require"

	v1 "github.com/roosthq/roost/api/gen/v1"
)

const (
	testKey  = "roost_testkey"
	running  = "aaaaaaaaaaaaaaaaaaaa"
	pausedID = "bbbbbbbbbbbbbbbbbbbb"
	failedID = "cccccccccccccccccccc"
)

// server is the API over a folder for a file system and local processes for commands. Routes
// and shapes are the generated ones; archives are made and read by tar(1).
type server struct {
	v1.StrictServerInterface // What no test calls stays nil.
	*httptest.Server
	t     *testing.T
	guest string

	mu        sync.Mutex
	sandboxes map[string]*v1.Sandbox
	keys      map[string]v1.APIKey
	lastBody  *v1.CreateSandbox
	lastIdem  string
	console   []byte
	checks    []v1.Check
	wrap      func(http.Handler) http.Handler
	progress  func(send func(line string))
	archive   func() io.Reader // Overrides what readArchive answers.
	cutRead   bool             // readFile breaks off in the middle.
	starts    []v1.ExecStart
	signals   []string
	resizes   []v1.PTYSize
	templates []v1.Template
	snapshots []v1.Template
	bodies    []any // Of the requests that server_family_test.go answered.
	forks     *v1.ForkResult
	leaks     []v1.Leak
	damaged   map[string]string // Sandboxes that do not resume, and the hint.
	events    chan string       // Every signal and resize, for tests that wait.
}

func newServer(t *testing.T) *server {
	t.Helper()
	s := &server{t: t, guest: t.TempDir(), sandboxes: map[string]*v1.Sandbox{}, keys: map[string]v1.APIKey{}, events: make(chan string, 64)}
	s.add(running, v1.Running, "")
	s.add(pausedID, v1.Paused, "idle for 5m")
	s.add(failedID, v1.Failed, "boom \x1b[31mred")
	s.templates = []v1.Template{warmBase()}
	s.checks = []v1.Check{{Name: "kvm", Status: v1.Ok, Detail: "boots"}}
	router := chi.NewRouter()
	router.Use(s.authorize)
	v1.HandlerFromMux(execHandler{v1.NewStrictHandlerWithOptions(s, nil, v1.StrictHTTPServerOptions{
		RequestErrorHandlerFunc:  badRequest,
		ResponseErrorHandlerFunc: func(w http.ResponseWriter, _ *http.Request, err error) { writeProblem(w, err) },
	}), s}, router)
	s.Server = httptest.NewServer(router)
	t.Cleanup(s.Server.Close)
	return s
}

func (s *server) add(id string, state v1.SandboxState, reason string) {
	used := int64(12 << 20)
	sandbox := v1.Sandbox{Id: id, State: state, Template: "base", Vcpus: 1, MemoryMb: 512, DiskSizeMb: 5120, IdleTimeoutS: 300,
		Isolation: "emulated", Runtime: "qemu", Generation: 3, CreatedAt: time.Now().Add(-3 * time.Hour), DiskUsedBytes: &used,
		Phases: &[]v1.Phase{{Name: "restore", Ms: 41.5}}}
	if reason != "" {
		sandbox.Reason = &reason
	}
	s.sandboxes[id] = &sandbox
}

// apiFailure is an error with the API's shape and its HTTP status.
type apiFailure struct {
	status              int
	code, message, hint string
}

func (e apiFailure) Error() string { return e.message }

func badRequest(w http.ResponseWriter, _ *http.Request, err error) {
	writeProblem(w, apiFailure{400, "invalid_argument", err.Error(), ""})
}

func writeProblem(w http.ResponseWriter, err error) {
	var f apiFailure
	if !errors.As(err, &f) {
		f = apiFailure{500, "internal", err.Error(), ""}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(f.status)
	hint := ""
	if f.hint != "" {
		hint = fmt.Sprintf(`,"hint":%q`, f.hint)
	}
	_, _ = fmt.Fprintf(w, `{"error":{"code":%q,"message":%q%s}}`, f.code, f.message, hint)
}

func (s *server) authorize(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/health" && r.Header.Get("X-API-Key") != testKey {
			writeProblem(w, apiFailure{401, "unauthenticated", "the API key is not valid", "make one with roost key create"})
			return
		}
		s.mu.Lock() // Orders what a test set before it started the client.
		wrap := s.wrap
		s.mu.Unlock()
		if wrap != nil {
			wrap(next).ServeHTTP(w, r)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// settle orders what handlers did before what the test looks at, and the other way round. The
// client between them is another process, through which the race detector does not see.
func (s *server) settle() {
	s.mu.Lock()
	defer s.mu.Unlock()
}

// change edits a sandbox and gives a copy.
func (s *server) change(id string, edit func(*v1.Sandbox)) (v1.Sandbox, error) {
	sandbox, err := s.sandbox(id)
	if err != nil {
		return v1.Sandbox{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	edit(sandbox)
	return *sandbox, nil
}

func (s *server) sandbox(id string) (*v1.Sandbox, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sandbox, ok := s.sandboxes[id]; ok {
		return sandbox, nil
	}
	return nil, apiFailure{404, "not_found", "find sandbox " + id + ": there is none", "roost ls shows them"}
}

func (s *server) awake(id string) error {
	sandbox, err := s.sandbox(id)
	if err == nil && sandbox.State == v1.Paused {
		return apiFailure{412, "failed_precondition", "exec sandbox " + id + ": it is paused", "roost resume " + id}
	}
	return err
}

func (s *server) GetHealth(context.Context, v1.GetHealthRequestObject) (v1.GetHealthResponseObject, error) {
	return v1.GetHealth200JSONResponse{Status: "ok", Version: "9.9.9"}, nil
}

func (s *server) GetHost(context.Context, v1.GetHostRequestObject) (v1.GetHostResponseObject, error) {
	return v1.GetHost200JSONResponse{Hostname: "box", Version: "9.9.9", Runtime: "qemu", Isolation: "emulated", Runtimes: []v1.Runtime{
		{Name: "qemu", Isolation: "emulated", Available: true, Reason: "no KVM"},
		{Name: "gvisor", Isolation: "sentry", Reason: "runsc is not there"},
	}, Checks: s.checks}, nil
}

// ListSandboxes gives one sandbox a page, so that clients must follow the cursor.
func (s *server) ListSandboxes(_ context.Context, r v1.ListSandboxesRequestObject) (v1.ListSandboxesResponseObject, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []v1.Sandbox
	for _, id := range []string{running, pausedID, failedID} {
		if one, ok := s.sandboxes[id]; ok && (r.Params.State == nil || *r.Params.State == one.State) {
			all = append(all, *one)
		}
	}
	at := 0
	if r.Params.Cursor != nil {
		at, _ = strconv.Atoi(*r.Params.Cursor)
	}
	out := v1.SandboxList{Sandboxes: []v1.Sandbox{}}
	if at < len(all) {
		out.Sandboxes = all[at : at+1]
	}
	if at+1 < len(all) {
		next := strconv.Itoa(at + 1)
		out.NextCursor = &next
	}
	return v1.ListSandboxes200JSONResponse(out), nil
}

func (s *server) CreateSandbox(_ context.Context, r v1.CreateSandboxRequestObject) (v1.CreateSandboxResponseObject, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastBody = r.Body
	if r.Params.IdempotencyKey != nil {
		s.lastIdem = *r.Params.IdempotencyKey
	}
	if r.Body.Template != nil && *r.Body.Template == "nope" {
		return nil, apiFailure{404, "not_found", "find template nope: there is none", "roost template ls"}
	}
	if s.progress == nil {
		return v1.CreateSandbox201JSONResponse(*s.sandboxes[running]), nil
	}
	reader, writer := io.Pipe()
	go func() {
		s.progress(func(line string) { _, _ = io.WriteString(writer, line+"\n") })
		_ = writer.Close()
	}()
	return v1.CreateSandbox201ApplicationxNdjsonResponse{Body: reader}, nil
}

func (s *server) GetSandbox(_ context.Context, r v1.GetSandboxRequestObject) (v1.GetSandboxResponseObject, error) {
	sandbox, err := s.change(r.Id, func(*v1.Sandbox) {})
	return v1.GetSandbox200JSONResponse(sandbox), err
}

func (s *server) DeleteSandbox(_ context.Context, r v1.DeleteSandboxRequestObject) (v1.DeleteSandboxResponseObject, error) {
	if _, err := s.sandbox(r.Id); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sandboxes, r.Id)
	return v1.DeleteSandbox204Response{}, nil
}

func (s *server) SetSandboxTimeout(_ context.Context, r v1.SetSandboxTimeoutRequestObject) (v1.SetSandboxTimeoutResponseObject, error) {
	sandbox, err := s.change(r.Id, func(one *v1.Sandbox) { one.IdleTimeoutS = r.Body.IdleTimeoutS })
	return v1.SetSandboxTimeout200JSONResponse(sandbox), err
}

type rawLogs []byte

func (l rawLogs) VisitGetSandboxLogsResponse(w http.ResponseWriter) error {
	w.Header().Set("Content-Type", "text/plain")
	_, err := w.Write(l)
	return err
}

func (s *server) GetSandboxLogs(_ context.Context, r v1.GetSandboxLogsRequestObject) (v1.GetSandboxLogsResponseObject, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	text := s.console
	if r.Params.TailBytes != nil && *r.Params.TailBytes < len(text) {
		text = text[len(text)-*r.Params.TailBytes:]
	}
	return rawLogs(bytes.Clone(text)), nil
}

func (s *server) ListAPIKeys(context.Context, v1.ListAPIKeysRequestObject) (v1.ListAPIKeysResponseObject, error) {
	out := v1.ListAPIKeys200JSONResponse{ApiKeys: []v1.APIKey{}}
	for _, key := range s.keys {
		out.ApiKeys = append(out.ApiKeys, key)
	}
	return out, nil
}

func (s *server) CreateAPIKey(_ context.Context, r v1.CreateAPIKeyRequestObject) (v1.CreateAPIKeyResponseObject, error) {
	key := v1.APIKey{Id: "key1", Name: r.Body.Name, Prefix: "roost_ab", CreatedAt: time.Now()}
	s.keys[key.Id] = key
	return v1.CreateAPIKey201JSONResponse{ApiKey: key, Secret: "roost_abSECRET"}, nil
}

func (s *server) DeleteAPIKey(_ context.Context, r v1.DeleteAPIKeyRequestObject) (v1.DeleteAPIKeyResponseObject, error) {
	if _, ok := s.keys[r.KeyId]; !ok {
		return nil, apiFailure{404, "not_found", "revoke key " + r.KeyId + ": there is none", ""}
	}
	delete(s.keys, r.KeyId)
	return v1.DeleteAPIKey204Response{}, nil
}

// at maps a path of the guest: relative ones start in /home/user.
func (s *server) at(path string) string {
	if !filepath.IsAbs(path) {
		path = filepath.Join("/home/user", path)
	}
	return filepath.Join(s.guest, path)
}

func (s *server) entry(path string) (v1.Entry, error) {
	info, err := os.Lstat(s.at(path))
	if err != nil {
		return v1.Entry{}, apiFailure{404, "not_found", "stat " + path + ": no such file or directory", ""}
	}
	whole := strings.TrimPrefix(s.at(path), s.guest)
	e := v1.Entry{Name: info.Name(), Path: whole, Size: info.Size(), Mode: fmt.Sprintf("%04o", info.Mode().Perm()), Type: v1.File}
	switch {
	case info.IsDir():
		e.Type = v1.Directory
	case info.Mode()&fs.ModeSymlink != 0:
		to, _ := os.Readlink(s.at(path))
		e.Type, e.SymlinkTarget = v1.Symlink, &to
	}
	return e, nil
}

func (s *server) StatFile(_ context.Context, r v1.StatFileRequestObject) (v1.StatFileResponseObject, error) {
	if err := s.awake(r.Id); err != nil {
		return nil, err
	}
	e, err := s.entry(r.Params.Path)
	return v1.StatFile200JSONResponse(e), err
}

func (s *server) ReadFile(_ context.Context, r v1.ReadFileRequestObject) (v1.ReadFileResponseObject, error) {
	f, err := os.Open(s.at(r.Params.Path))
	if err != nil {
		return nil, err
	}
	var body io.Reader = f
	if s.cutRead {
		body = io.MultiReader(io.LimitReader(f, 1000), brokenReader{})
	}
	return v1.ReadFile200ApplicationoctetStreamResponse{Body: body}, nil
}

// brokenReader ends a response in the middle, as a dying server does.
type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { panic(http.ErrAbortHandler) }

func (s *server) WriteFile(_ context.Context, r v1.WriteFileRequestObject) (v1.WriteFileResponseObject, error) {
	if err := s.awake(r.Id); err != nil {
		return nil, err
	}
	to := s.at(r.Params.Path)
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return nil, err
	}
	mode := uint64(0o644)
	if r.Params.Mode != nil {
		mode, _ = strconv.ParseUint(*r.Params.Mode, 8, 32)
	}
	f, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, fs.FileMode(mode))
	if err != nil {
		return nil, err
	}
	if _, err := io.Copy(f, r.Body); err != nil {
		return nil, err
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	e, err := s.entry(r.Params.Path)
	return v1.WriteFile200JSONResponse(e), err
}

func (s *server) MakeDir(_ context.Context, r v1.MakeDirRequestObject) (v1.MakeDirResponseObject, error) {
	if _, err := os.Stat(s.at(r.Params.Path)); err == nil {
		return nil, apiFailure{409, "already_exists", "make dir " + r.Params.Path + ": it exists", ""}
	}
	if err := os.MkdirAll(s.at(r.Params.Path), 0o755); err != nil {
		return nil, err
	}
	e, err := s.entry(r.Params.Path)
	return v1.MakeDir201JSONResponse(e), err
}

func (s *server) ReadArchive(ctx context.Context, r v1.ReadArchiveRequestObject) (v1.ReadArchiveResponseObject, error) {
	if s.archive != nil {
		return v1.ReadArchive200ApplicationxTarResponse{Body: s.archive()}, nil
	}
	// As the guest's: what is below the folder, without the folder itself.
	out, err := exec.CommandContext(ctx, "sh", "-c", `cd "$1" && find . -mindepth 1 -printf '%P\0' | tar --no-recursion --null -T - -cf -`, "sh", s.at(r.Params.Path)).Output()
	return v1.ReadArchive200ApplicationxTarResponse{Body: bytes.NewReader(out)}, err
}

func (s *server) WriteArchive(ctx context.Context, r v1.WriteArchiveRequestObject) (v1.WriteArchiveResponseObject, error) {
	cmd := exec.CommandContext(ctx, "tar", "-C", s.at(r.Params.Path), "-xpf", "-")
	cmd.Stdin = r.Body
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("unpack: %s", out)
	}
	return v1.WriteArchive204Response{}, nil
}

// put makes a file in the guest.
func (s *server) put(path, text string, mode fs.FileMode) {
	s.t.Helper()
	require.NoError(s.t, os.MkdirAll(filepath.Dir(s.at(path)), 0o755))
	require.NoError(s.t, os.WriteFile(s.at(path), []byte(text), mode))
}
