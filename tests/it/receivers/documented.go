// What goes with the verification of docs/WEBHOOKS.md for Go: one JSON object a line, the verdict on each.
package main

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
)

func main() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<24)
	for lines.Scan() {
		var post struct {
			Dialect, Secret, Body string
			Headers               map[string]string
		}
		if err := json.Unmarshal(lines.Bytes(), &post); err != nil {
			panic(err)
		}
		header := http.Header{}
		for name, value := range post.Headers {
			header.Set(name, value)
		}
		body, err := base64.StdEncoding.DecodeString(post.Body)
		verdict := "wrong"
		if err == nil && Verify(post.Dialect, post.Secret, header, body) &&
			!Verify(post.Dialect, post.Secret, header, append(body, ' ')) {
			verdict = "ok"
		}
		fmt.Println(verdict)
	}
}
