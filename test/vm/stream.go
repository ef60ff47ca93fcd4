package vm

import (
	"io"
	"sync"
)

// stream copies a port to one of our outputs, and knows how far it is.
type stream struct {
	from  io.ReadCloser
	mu    sync.Mutex
	moved *sync.Cond
	bytes int64
	over  bool
	ended chan struct{}
}

func copyTo(to io.Writer, from io.ReadCloser) *stream {
	s := &stream{from: from, ended: make(chan struct{})}
	s.moved = sync.NewCond(&s.mu)
	go s.copy(to)
	return s
}

func (s *stream) copy(to io.Writer) {
	defer close(s.ended)
	buffer := make([]byte, 64<<10)
	for {
		n, err := s.from.Read(buffer)
		_, _ = to.Write(buffer[:n])
		s.mu.Lock()
		s.bytes += int64(n)
		s.over = err != nil
		s.moved.Broadcast()
		s.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// reached waits until n bytes were copied, or none will come any more: the VM died.
func (s *stream) reached(n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.bytes < n && !s.over {
		s.moved.Wait()
	}
}

// end waits for the end of the copy: the VM, which has the other end, is gone.
func (s *stream) end() {
	<-s.ended
	_ = s.from.Close()
}
