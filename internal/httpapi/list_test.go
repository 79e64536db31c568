package httpapi

import "testing"

// What can't be resumed after has no id: a browser's Last-Event-ID stays what it was.
func TestEventID(t *testing.T) {
	for change, want := range map[string]string{
		`{"type":"put","revision":7,"object":{}}`: "id: 7\nevent: put\ndata: {\"type\":\"put\",\"revision\":7,\"object\":{}}\n\n",
		`{"type":"put","revision":0,"object":{}}`: "event: put\ndata: {\"type\":\"put\",\"revision\":0,\"object\":{}}\n\n",
	} {
		if got := string(event([]byte(change))); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
