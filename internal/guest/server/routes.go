package server

import (
	"context"
	"math"
	"net/http"
	"strings"

	"connectrpc.com/connect"

	"github.com/roosthq/roost/api/gen/filesystem/filesystemconnect"
	"github.com/roosthq/roost/api/gen/process/processconnect"
	"github.com/roosthq/roost/api/gen/roost/guest/v1/guestv1connect"
	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/guest/archive"
	"github.com/roosthq/roost/internal/guest/export"
	"github.com/roosthq/roost/internal/guest/files"
	"github.com/roosthq/roost/internal/guest/process"
	"github.com/roosthq/roost/internal/guest/reply"
	"github.com/roosthq/roost/internal/guest/restore"
)

// maxMessage bounds one RPC message in memory; file contents do not go by RPC.
const maxMessage = 32 << 20

func (s *Server) routes(c Config, processes *process.Service, control *restore.Service) http.Handler {
	mux := http.NewServeMux()
	options := connect.WithHandlerOptions(
		connect.WithInterceptors(faults{}),
		connect.WithReadMaxBytes(maxMessage),
		// Never compress answers: it costs the guest's CPU and saves a loopback's bytes.
		connect.WithCompressMinBytes(math.MaxInt),
	)
	mux.Handle(processconnect.NewProcessHandler(processes, options))
	mux.Handle(filesystemconnect.NewFilesystemHandler(s.filesystem, options))
	mux.Handle(guestv1connect.NewControlHandler(control, options))
	file := files.Handler{Users: c.Users, Identity: s.identity}
	mux.HandleFunc("GET /files", file.Get)
	mux.HandleFunc("POST /files", file.Post)
	folder := archive.Handler{Users: c.Users, Identity: s.identity}
	mux.HandleFunc("GET /archive", folder.Get)
	mux.HandleFunc("PUT /archive", folder.Put)
	mux.HandleFunc("GET "+export.Path, export.Handler{Root: c.Root}.Get)
	mux.HandleFunc("GET /envs", s.envs)
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		reply.Error(w, fault.New(fault.NotFound, r.Method, r.URL.Path, "no such route"))
	})
	return s.guard(mux)
}

func (s *Server) envs(w http.ResponseWriter, _ *http.Request) {
	envs := s.identity.Envs()
	if envs == nil {
		envs = map[string]string{}
	}
	reply.JSON(w, http.StatusOK, envs)
}

// guard lets nothing past without its token.
func (s *Server) guard(next http.Handler) http.Handler {
	rpcError := connect.NewErrorWriter()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		err := s.admit(r)
		switch {
		case err == nil:
			next.ServeHTTP(w, r)
		case isRPC(r) && rpcError.IsSupported(r):
			_ = rpcError.Write(w, r, fault.ToConnect(err))
		default:
			reply.Error(w, err)
		}
	})
}

// isRPC: Connect would take any GET for a call of its own.
func isRPC(r *http.Request) bool {
	service, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	return service == processconnect.ProcessName || service == filesystemconnect.FilesystemName || service == guestv1connect.ControlName
}

func (s *Server) admit(r *http.Request) error {
	if r.URL.Path == "/health" && r.Method == http.MethodGet {
		return nil
	}
	if strings.HasPrefix(r.URL.Path, "/"+guestv1connect.ControlName+"/") {
		token := r.Header.Get(restore.TokenHeader)
		if s.identity.Control(token) {
			return nil
		}
		if r.URL.Path == guestv1connect.ControlRestoreProcedure && s.identity.Superseded(token) {
			return nil
		}
		return fault.New(fault.Unauthenticated, "", "", "the control token is missing or wrong")
	}
	if r.URL.Path == export.Path { // all files of all users: the host's alone
		if s.identity.Control(r.Header.Get(restore.TokenHeader)) {
			return nil
		}
		return fault.New(fault.Unauthenticated, "", "", "the control token is missing or wrong")
	}
	if !s.identity.Access(r.Header.Get("X-Access-Token")) {
		return fault.New(fault.Unauthenticated, "", "", "the access token is missing or wrong")
	}
	s.activity.Touch()
	return nil
}

// faults puts errors on the wire with their kind and hint.
type faults struct{}

// WrapUnary implements connect.Interceptor.
func (faults) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		res, err := next(ctx, req)
		return res, fault.ToConnect(err)
	}
}

// WrapStreamingClient implements connect.Interceptor.
func (faults) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler implements connect.Interceptor.
func (faults) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		return fault.ToConnect(next(ctx, conn))
	}
}
