package api

import (
	"bytes"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func serve(t *testing.T, log io.Writer, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	a := &API{log: slog.New(slog.NewTextHandler(log, nil))}
	s := httptest.NewServer(a.observe(a.contain(a.limitBody(h))))
	t.Cleanup(s.Close)
	return s
}

func TestPanicIsA500(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	s := serve(t, &log, func(http.ResponseWriter, *http.Request) { panic("secret detail") })
	resp, err := s.Client().Get(s.URL)
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, 500, resp.StatusCode)
	require.Contains(t, string(body), `"code":"internal"`)
	require.NotContains(t, string(body), "secret detail")
	s.Close()
	require.Contains(t, log.String(), "secret detail")
	require.Contains(t, log.String(), "middleware_test.go", "with a stack")
}

func TestPanicAfterTheHeaderBreaksTheAnswer(t *testing.T) {
	t.Parallel()
	s := serve(t, io.Discard, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("half"))
		_ = http.NewResponseController(w).Flush()
		panic("late")
	})
	resp, err := s.Client().Get(s.URL)
	require.NoError(t, err)
	defer resp.Body.Close()
	_, err = io.ReadAll(resp.Body)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
}

func TestJSONBodyIsWholeBeforeTheHandler(t *testing.T) {
	t.Parallel()
	s := serve(t, io.Discard, func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		require.EqualValues(t, maxJSON, n)
		w.WriteHeader(http.StatusNoContent)
	})
	for size, want := range map[int]int{maxJSON: 204, maxJSON + 1: 400} {
		resp, err := s.Client().Post(s.URL+"/v1/sandboxes", "application/json", strings.NewReader(strings.Repeat(" ", size)))
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.Equal(t, want, resp.StatusCode)
	}
}
