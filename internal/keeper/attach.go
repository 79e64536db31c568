package keeper

import (
	"bufio"
	"context"
	"io"
	"net"
	"sync"
)

// Attach connects to a process' console: first its last output, then what follows, until it ends or the stream is
// closed. resize may be nil; it is read until the stream is closed.
func (c *Client) Attach(ctx context.Context, id string, resize <-chan WinSize) (io.ReadWriteCloser, error) {
	conn, r, err := greet(ctx, c.dir, hello{Version: protocol, Attach: id})
	if err != nil {
		return nil, err
	}
	s := &stream{conn: conn, r: r, closed: make(chan struct{})}
	go s.resize(resize)
	return s, nil
}

// stream is an attached console.
type stream struct {
	conn   net.Conn
	r      *bufio.Reader
	write  sync.Mutex
	once   sync.Once
	closed chan struct{}
}

func (s *stream) Read(p []byte) (int, error) { return s.r.Read(p) }

func (s *stream) Write(p []byte) (int, error) {
	for written := 0; written < len(p); {
		n := min(len(p)-written, frameMax)
		if err := s.frame(frameInput, p[written:written+n]); err != nil {
			return written, err
		}
		written += n
	}
	return len(p), nil
}

func (s *stream) frame(kind byte, payload []byte) error {
	s.write.Lock()
	defer s.write.Unlock()
	_, err := s.conn.Write(appendFrame(nil, kind, payload))
	return err
}

func (s *stream) resize(sizes <-chan WinSize) {
	for {
		select {
		case size, ok := <-sizes:
			if !ok {
				return
			}
			s.frame(frameResize, []byte{byte(size.Rows >> 8), byte(size.Rows), byte(size.Cols >> 8), byte(size.Cols)})
		case <-s.closed:
			return
		}
	}
}

func (s *stream) Close() error {
	s.once.Do(func() { close(s.closed) })
	return s.conn.Close()
}
