package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"github.com/go-chi/chi/v5/middleware"

	"github.com/roosthq/roost/internal/control/apikey"
	"github.com/roosthq/roost/internal/fault"
)

const (
	maxJSON = 1 << 20
	// maxExecJSON leaves room for a command's input.
	maxExecJSON = 16 << 20
	jsonLimit   = 30 * time.Second
	// stallLimit bounds the silence between two parts of a file body.
	stallLimit = 2 * time.Minute
)

type contextKey int

const (
	keyOfRequest contextKey = iota
	keyOfAPIKey
)

// observe logs each request: never its query, headers or body, which hold secrets.
func (a *API) observe(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ww := middleware.NewWrapResponseWriter(w, r.ProtoMajor)
		start := time.Now()
		defer func() {
			a.log.Debug("request", "method", r.Method, "path", r.URL.Path, "status", ww.Status(),
				"bytes", ww.BytesWritten(), "ms", time.Since(start).Milliseconds())
		}()
		next.ServeHTTP(ww, r)
	})
}

// contain turns a panic into a 500.
func (a *API) contain(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			p := recover()
			if p == nil {
				return
			}
			if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
				panic(p)
			}
			a.fail(w, r, a.panicked(p))
		}()
		next.ServeHTTP(w, r)
	})
}

// panicked logs a panic and gives the error that a client may see.
func (a *API) panicked(p any) error {
	a.log.Error("handler panicked", "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
	return fault.New(fault.Internal, "", "", "an internal error happened").
		WithHint("the log of the control plane has the details")
}

// authenticate lets in who has a key.
func (a *API) authenticate(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/health" {
			next.ServeHTTP(w, r)
			return
		}
		key, err := a.keys.Authenticate(r.Context(), secretOf(r))
		if err != nil {
			a.fail(w, r, err)
			return
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), keyOfAPIKey, key)))
	})
}

func secretOf(r *http.Request) string {
	if secret := r.Header.Get("X-API-Key"); secret != "" {
		return secret
	}
	scheme, secret, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if strings.EqualFold(scheme, "Bearer") {
		return strings.TrimSpace(secret)
	}
	return ""
}

// apiKey is the key that a request came with.
func apiKey(ctx context.Context) *apikey.Key {
	key, _ := ctx.Value(keyOfAPIKey).(*apikey.Key)
	return key
}

// keepRequest lets a strict handler reach the request (to take over its connection).
func keepRequest(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), keyOfRequest, r)))
	})
}

// limitBody bounds what a client may make us read.
func (a *API) limitBody(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Body == nil || r.Body == http.NoBody {
			next.ServeHTTP(w, r)
			return
		}
		conn := http.NewResponseController(w)
		if isStream(r) {
			r.Body = &stallBody{r.Body, conn}
			next.ServeHTTP(w, r)
			return
		}
		body, err := readJSON(conn, r)
		if err != nil {
			a.fail(w, r, err)
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		next.ServeHTTP(w, r)
	})
}

// isStream tells file bodies from JSON.
func isStream(r *http.Request) bool {
	return r.Method == http.MethodPut &&
		(strings.HasSuffix(r.URL.Path, "/files") || strings.HasSuffix(r.URL.Path, "/archive"))
}

// readJSON reads a whole body before its handler runs. The deadline is lifted afterwards:
// one that stayed would cancel a handler that works longer.
func readJSON(conn *http.ResponseController, r *http.Request) ([]byte, error) {
	limit := int64(maxJSON)
	if strings.HasSuffix(r.URL.Path, "/exec") {
		limit = maxExecJSON
	}
	_ = conn.SetReadDeadline(time.Now().Add(jsonLimit))
	body, err := io.ReadAll(io.LimitReader(r.Body, limit+1))
	_ = conn.SetReadDeadline(time.Time{})
	switch {
	case err != nil && r.Context().Err() != nil:
		return nil, fault.Wrap(r.Context().Err(), "read", "request body")
	case err != nil:
		return nil, fault.New(fault.Invalid, "read", "request body", err.Error())
	case int64(len(body)) > limit:
		return nil, fault.New(fault.Invalid, "read", "request body", fmt.Sprintf("it has more than %d bytes", limit))
	}
	return body, nil
}

// stallBody fails when a client goes silent in the middle of a file.
type stallBody struct {
	io.ReadCloser
	conn *http.ResponseController
}

func (b *stallBody) Read(p []byte) (int, error) {
	_ = b.conn.SetReadDeadline(time.Now().Add(stallLimit))
	n, err := b.ReadCloser.Read(p)
	_ = b.conn.SetReadDeadline(time.Time{})
	return n, err
}
